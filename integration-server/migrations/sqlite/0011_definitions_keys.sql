-- Keys that sign the repository of definitions; sealed.
CREATE TABLE definitions_keys (
    id      TEXT   NOT NULL PRIMARY KEY CHECK (id IN ('publisher', 'online')),
    secret  BLOB   NOT NULL,
    made_ms BIGINT NOT NULL
);
