-- The first schema. Times are milliseconds since 1970 (UTC); ids are UUIDs in
-- lower case; what only the server reads whole is JSON text.

CREATE TABLE meta (
    name  TEXT NOT NULL PRIMARY KEY,
    value TEXT NOT NULL
);

CREATE TABLE counters (
    name  TEXT   NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('epoch', 0);

-- Secrets of both kinds of token are kept as SHA-256 only.
CREATE TABLE join_tokens (
    id            TEXT   NOT NULL PRIMARY KEY,
    component     TEXT   NOT NULL CHECK (component IN ('agent', 'svm')),
    tenant        TEXT   NOT NULL,
    secret_sha256 BLOB   NOT NULL,
    uses          BIGINT NOT NULL CHECK (uses > 0),
    used          BIGINT NOT NULL DEFAULT 0 CHECK (used >= 0 AND used <= uses),
    created_ms    BIGINT NOT NULL,
    expires_ms    BIGINT NOT NULL,
    revoked_ms    BIGINT
);

CREATE TABLE api_tokens (
    id           TEXT   NOT NULL PRIMARY KEY,
    name         TEXT   NOT NULL,
    token_sha256 BLOB   NOT NULL UNIQUE,
    created_ms   BIGINT NOT NULL,
    revoked_ms   BIGINT
);

CREATE TABLE svms (
    id           TEXT   NOT NULL PRIMARY KEY,
    name         TEXT   NOT NULL,
    token_id     TEXT   NOT NULL REFERENCES join_tokens (id),
    key_sha256   BLOB   NOT NULL,
    enrolled_ms  BIGINT NOT NULL,
    revoked_ms   BIGINT,
    last_seen_ms BIGINT,
    version      TEXT   NOT NULL DEFAULT '',
    hostname     TEXT   NOT NULL,
    product_uuid TEXT,
    report       TEXT,
    UNIQUE (token_id, key_sha256)
);
CREATE INDEX svms_by_name ON svms (name);

CREATE TABLE agents (
    id           TEXT   NOT NULL PRIMARY KEY,
    tenant       TEXT   NOT NULL,
    name         TEXT   NOT NULL,
    token_id     TEXT   NOT NULL REFERENCES join_tokens (id),
    key_sha256   BLOB   NOT NULL,
    enrolled_ms  BIGINT NOT NULL,
    revoked_ms   BIGINT,
    last_seen_ms BIGINT,
    version      TEXT   NOT NULL DEFAULT '',
    hostname     TEXT   NOT NULL,
    product_uuid TEXT,
    boot_id      TEXT,
    report       TEXT,
    UNIQUE (token_id, key_sha256)
);
CREATE INDEX agents_by_name ON agents (name);
CREATE INDEX agents_by_product ON agents (product_uuid);

-- An agent names its detections: what it sends again is the same row.
CREATE TABLE detections (
    seq         INTEGER PRIMARY KEY AUTOINCREMENT,
    agent_id    TEXT   NOT NULL REFERENCES agents (id),
    id          TEXT   NOT NULL,
    tenant      TEXT   NOT NULL,
    time_ms     BIGINT NOT NULL,
    received_ms BIGINT NOT NULL,
    path        BLOB   NOT NULL,
    verdict     TEXT   NOT NULL,
    name        TEXT   NOT NULL,
    engine      TEXT   NOT NULL,
    action      TEXT   NOT NULL,
    class       TEXT   NOT NULL,
    blake3      BLOB   NOT NULL,
    sha256      BLOB,
    size        BIGINT NOT NULL,
    pid         BIGINT NOT NULL,
    UNIQUE (agent_id, id)
);

CREATE TABLE hosts (
    uri        TEXT NOT NULL PRIMARY KEY,
    host       TEXT NOT NULL,
    datacenter TEXT NOT NULL,
    cluster    TEXT NOT NULL,
    error      TEXT,
    read_ms    BIGINT,
    tried_ms   BIGINT
);

CREATE TABLE domains (
    uri   TEXT NOT NULL REFERENCES hosts (uri) ON DELETE CASCADE,
    uuid  TEXT NOT NULL,
    name  TEXT NOT NULL,
    state TEXT NOT NULL,
    PRIMARY KEY (uri, uuid)
);
CREATE INDEX domains_by_uuid ON domains (uuid);
