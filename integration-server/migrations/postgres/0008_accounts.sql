-- Who may use the server, and what was done by whom. Names, passwords' hashes, second
-- factors, grants and addresses are sealed; what is a secret itself is kept as its hash.

CREATE TABLE accounts (
    id          TEXT   NOT NULL PRIMARY KEY,
    name        BYTEA  NOT NULL,
    name_index  BYTEA  NOT NULL UNIQUE,
    password    BYTEA  NOT NULL,
    grants      BYTEA  NOT NULL,
    totp        BYTEA,
    totp_on_ms  BIGINT,
    totp_step   BIGINT,
    revision    BIGINT NOT NULL DEFAULT 0,
    created_ms  BIGINT NOT NULL,
    password_ms BIGINT NOT NULL,
    login_ms    BIGINT,
    disabled_ms BIGINT,
    failures    BIGINT NOT NULL DEFAULT 0,
    failed_ms   BIGINT NOT NULL DEFAULT 0
);

CREATE TABLE recovery_codes (
    id          TEXT   NOT NULL PRIMARY KEY,
    account_id  TEXT   NOT NULL REFERENCES accounts (id),
    code_sha256 BYTEA  NOT NULL,
    used_ms     BIGINT,
    UNIQUE (account_id, code_sha256)
);

CREATE TABLE sessions (
    id           TEXT   NOT NULL PRIMARY KEY,
    account_id   TEXT   NOT NULL REFERENCES accounts (id),
    token_sha256 BYTEA  NOT NULL UNIQUE,
    address      BYTEA  NOT NULL,
    created_ms   BIGINT NOT NULL,
    seen_ms      BIGINT NOT NULL,
    confirmed_ms BIGINT NOT NULL
);
CREATE INDEX sessions_by_account ON sessions (account_id);

-- An account's tokens; the machine's own one is in api_tokens.
CREATE TABLE account_tokens (
    id           TEXT   NOT NULL PRIMARY KEY,
    account_id   TEXT   NOT NULL REFERENCES accounts (id),
    name         BYTEA  NOT NULL,
    scope        BYTEA  NOT NULL,
    token_sha256 BYTEA  NOT NULL UNIQUE,
    created_ms   BIGINT NOT NULL,
    expires_ms   BIGINT NOT NULL,
    used_ms      BIGINT,
    revoked_ms   BIGINT
);
CREATE INDEX account_tokens_by_account ON account_tokens (account_id);

CREATE TABLE setup_tokens (
    id           TEXT   NOT NULL PRIMARY KEY,
    token_sha256 BYTEA  NOT NULL UNIQUE,
    created_ms   BIGINT NOT NULL,
    used_ms      BIGINT
);

-- Addresses that logins failed from, by their keyed index.
CREATE TABLE login_sources (
    id        TEXT   NOT NULL PRIMARY KEY,
    failures  BIGINT NOT NULL,
    failed_ms BIGINT NOT NULL
);

-- A chain: each row's hash is made of the one before it. Its length is a counter.
CREATE TABLE audit (
    id      TEXT   NOT NULL PRIMARY KEY,
    time_ms BIGINT NOT NULL,
    body    BYTEA  NOT NULL,
    hash    BYTEA  NOT NULL
);
INSERT INTO counters (name, value) VALUES ('audit', 0);

CREATE INDEX detections_by_tenant ON detections (tenant, seq);
