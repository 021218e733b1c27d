-- What was allowed by maintenance tokens; the tokens themselves are kept nowhere.
CREATE TABLE maintenance_grants (
    id       TEXT   NOT NULL PRIMARY KEY,
    agent_id TEXT   NOT NULL REFERENCES agents (id),
    allowed  TEXT   NOT NULL CHECK (allowed IN ('stop', 'remove')),
    from_ms  BIGINT NOT NULL,
    until_ms BIGINT NOT NULL,
    reason   TEXT   NOT NULL
);
CREATE INDEX maintenance_grants_by_end ON maintenance_grants (until_ms);
