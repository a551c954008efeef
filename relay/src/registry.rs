//! What the relay must not forget: leases, satellites, certificates, configurations, what is stored of each epoch.
//!
//! One SQL text for SQLite and PostgreSQL, so: no BOOLEAN, no `SUM` without a cast, times as BIGINT milliseconds,
//! ids and JSON as TEXT, numbered parameters only. SQLite commits with `synchronous = FULL`: what it has said is
//! stored survives a power cut.
