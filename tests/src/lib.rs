//! What the journeys share: the programs, devices that misbehave, links that fail, and the checker.
