-- What an agent's quarantine is sealed with, so that a guest that joins anew can read it.
CREATE TABLE quarantine_keys (
    agent_id TEXT PRIMARY KEY REFERENCES agents (id),
    key BYTEA NOT NULL,
    kept_ms BIGINT NOT NULL
);
