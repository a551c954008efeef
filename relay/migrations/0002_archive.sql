-- What is stored of each epoch, and the batches on their way into storage. One text for SQLite and PostgreSQL.

-- spans: [[first record, last record, samples due before, samples due through], ...] as JSON.
CREATE TABLE streams (
    satellite TEXT NOT NULL,
    epoch TEXT NOT NULL,
    spans TEXT NOT NULL,
    due BIGINT NOT NULL,
    stored BIGINT NOT NULL,
    explained BIGINT NOT NULL,
    set_aside BIGINT NOT NULL,
    updated_at_ms BIGINT NOT NULL,
    PRIMARY KEY (satellite, epoch)
);

-- state: intent, then done or abandoned. content: the objects and what they hold, as JSON.
CREATE TABLE batches (
    id TEXT NOT NULL PRIMARY KEY,
    state TEXT NOT NULL,
    content TEXT NOT NULL,
    created_at_ms BIGINT NOT NULL,
    finished_at_ms BIGINT
);

CREATE INDEX batches_by_state ON batches (state, finished_at_ms);

-- Frames that can't be decoded or stored, whole.
CREATE TABLE dead_letters (
    satellite TEXT NOT NULL,
    epoch TEXT NOT NULL,
    first_seq BIGINT NOT NULL,
    last_seq BIGINT NOT NULL,
    due_before BIGINT NOT NULL,
    due_through BIGINT NOT NULL,
    frame BYTEA NOT NULL,
    error TEXT NOT NULL,
    at_ms BIGINT NOT NULL,
    PRIMARY KEY (satellite, epoch, first_seq)
);

CREATE INDEX dead_letters_by_age ON dead_letters (satellite, at_ms);
