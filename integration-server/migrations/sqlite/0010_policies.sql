-- What is set for guests. Revisions are only ever added; what they say, who made them,
-- groups' names and queries, and what agents answer is sealed.

CREATE TABLE policies (
    id       TEXT   NOT NULL PRIMARY KEY,
    subject  TEXT   NOT NULL,
    revision BIGINT NOT NULL,
    made_ms  BIGINT NOT NULL,
    body     BLOB   NOT NULL,
    UNIQUE (subject, revision)
);

CREATE TABLE policy_groups (
    id         TEXT   NOT NULL PRIMARY KEY,
    tenant     TEXT   NOT NULL,
    name       BLOB   NOT NULL,
    name_index BLOB   NOT NULL,
    query      BLOB   NOT NULL,
    priority   BIGINT NOT NULL,
    revision   BIGINT NOT NULL DEFAULT 0,
    made_ms    BIGINT NOT NULL,
    UNIQUE (tenant, name_index)
);

CREATE TABLE policy_reports (
    agent_id    TEXT   NOT NULL PRIMARY KEY REFERENCES agents (id),
    body        BLOB   NOT NULL,
    -- Whether it refused one.
    refused     BIGINT NOT NULL,
    reported_ms BIGINT NOT NULL
);
CREATE INDEX policy_reports_refused ON policy_reports (refused);

-- Counts changes of policies and groups, so that every server notices another's.
INSERT INTO counters (name, value) VALUES ('policies', 0);
