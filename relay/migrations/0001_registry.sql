-- Leases, satellites, certificates and configurations. One text for SQLite and PostgreSQL.

CREATE TABLE relay (
    id BIGINT NOT NULL PRIMARY KEY CHECK (id = 1),
    name TEXT NOT NULL,
    revision BIGINT NOT NULL
);

CREATE TABLE satellites (
    id TEXT NOT NULL PRIMARY KEY,
    name TEXT NOT NULL,
    lease TEXT NOT NULL,
    token_sha256 TEXT,
    created_at_ms BIGINT NOT NULL,
    enrolled_at_ms BIGINT,
    revoked_at_ms BIGINT,
    revision BIGINT NOT NULL,
    config_version BIGINT NOT NULL,
    generation BIGINT NOT NULL,
    recoveries BIGINT NOT NULL,
    last_seen_ms BIGINT,
    hostname TEXT,
    agent_version TEXT,
    address TEXT,
    progress TEXT,
    config_status TEXT,
    config_status_at_ms BIGINT
);

-- A name belongs to one satellite until that one is revoked.
CREATE UNIQUE INDEX satellites_by_name ON satellites (name) WHERE revoked_at_ms IS NULL;
CREATE INDEX satellites_by_revision ON satellites (revision);

CREATE TABLE leases (
    id TEXT NOT NULL PRIMARY KEY,
    satellite TEXT NOT NULL REFERENCES satellites (id),
    token_sha256 TEXT NOT NULL,
    relay_url TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    expires_at_ms BIGINT NOT NULL,
    used_at_ms BIGINT,
    used_spki_sha256 TEXT,
    revoked_at_ms BIGINT,
    failures BIGINT NOT NULL,
    failures_since_ms BIGINT NOT NULL
);

CREATE INDEX leases_by_satellite ON leases (satellite);

CREATE TABLE certificates (
    serial TEXT NOT NULL PRIMARY KEY,
    satellite TEXT NOT NULL REFERENCES satellites (id),
    generation BIGINT NOT NULL,
    spki_sha256 TEXT NOT NULL,
    state TEXT NOT NULL,
    issued_at_ms BIGINT NOT NULL,
    not_after_ms BIGINT NOT NULL,
    renew_after_ms BIGINT NOT NULL,
    overlap_until_ms BIGINT,
    chain TEXT NOT NULL,
    UNIQUE (satellite, generation)
);

CREATE TABLE configs (
    satellite TEXT NOT NULL REFERENCES satellites (id),
    version BIGINT NOT NULL,
    document TEXT NOT NULL,
    set_at_ms BIGINT NOT NULL,
    PRIMARY KEY (satellite, version)
);
