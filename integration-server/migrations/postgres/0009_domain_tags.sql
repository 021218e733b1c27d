-- What a host's administrator calls a domain; NULL for nothing.
ALTER TABLE domains ADD COLUMN tags BYTEA;
