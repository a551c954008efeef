-- When this registry was found to be older than what the archive holds: a backup was copied back.
ALTER TABLE relay ADD COLUMN restored_at_ms BIGINT;
