-- Places for sealed values beside the plain ones. The server fills them in one
-- transaction before it goes on to the next version, which removes the plain ones.

-- What values are sealed with, wrapped by the master key, which is never in here.
CREATE TABLE data_keys (
    id      BIGINT NOT NULL PRIMARY KEY,
    purpose TEXT   NOT NULL CHECK (purpose IN ('values', 'index')),
    wrapped BYTEA  NOT NULL,
    made_ms BIGINT NOT NULL
);

ALTER TABLE api_tokens ADD COLUMN sealed_name BYTEA NOT NULL DEFAULT '';
ALTER TABLE api_tokens ADD COLUMN name_index BYTEA NOT NULL DEFAULT '';

ALTER TABLE svms ADD COLUMN sealed_name BYTEA NOT NULL DEFAULT '';
ALTER TABLE svms ADD COLUMN name_index BYTEA NOT NULL DEFAULT '';
ALTER TABLE svms ADD COLUMN sealed_version BYTEA;
ALTER TABLE svms ADD COLUMN sealed_hostname BYTEA NOT NULL DEFAULT '';
ALTER TABLE svms ADD COLUMN sealed_product_uuid BYTEA;
ALTER TABLE svms ADD COLUMN sealed_report BYTEA;

ALTER TABLE agents ADD COLUMN sealed_name BYTEA NOT NULL DEFAULT '';
ALTER TABLE agents ADD COLUMN name_index BYTEA NOT NULL DEFAULT '';
ALTER TABLE agents ADD COLUMN sealed_version BYTEA;
ALTER TABLE agents ADD COLUMN sealed_hostname BYTEA NOT NULL DEFAULT '';
ALTER TABLE agents ADD COLUMN sealed_product_uuid BYTEA;
ALTER TABLE agents ADD COLUMN product_index BYTEA;
ALTER TABLE agents ADD COLUMN sealed_boot_id BYTEA;
ALTER TABLE agents ADD COLUMN sealed_report BYTEA;

ALTER TABLE detections ADD COLUMN sealed_path BYTEA NOT NULL DEFAULT '';
ALTER TABLE detections ADD COLUMN sealed_name BYTEA NOT NULL DEFAULT '';
ALTER TABLE detections ADD COLUMN sealed_engine BYTEA NOT NULL DEFAULT '';
ALTER TABLE detections ADD COLUMN sealed_blake3 BYTEA NOT NULL DEFAULT '';
ALTER TABLE detections ADD COLUMN sealed_sha256 BYTEA;
ALTER TABLE detections ADD COLUMN sealed_member BYTEA;
ALTER TABLE detections ADD COLUMN sealed_container BYTEA;

ALTER TABLE quarantine_keys ADD COLUMN sealed_key BYTEA NOT NULL DEFAULT '';

ALTER TABLE maintenance_grants ADD COLUMN sealed_reason BYTEA NOT NULL DEFAULT '';

-- A hypervisor's URI and a domain's UUID say who they are: rows are named by their
-- keyed indexes.
CREATE TABLE sealed_hosts (
    id         TEXT   NOT NULL PRIMARY KEY,
    uri        BYTEA  NOT NULL,
    host       BYTEA  NOT NULL,
    datacenter BYTEA  NOT NULL,
    cluster    BYTEA  NOT NULL,
    error      BYTEA,
    read_ms    BIGINT,
    tried_ms   BIGINT
);
CREATE TABLE sealed_domains (
    host_id TEXT   NOT NULL REFERENCES sealed_hosts (id) ON DELETE CASCADE,
    id      TEXT   NOT NULL,
    uuid    BYTEA  NOT NULL,
    name    BYTEA  NOT NULL,
    state   TEXT   NOT NULL,
    PRIMARY KEY (host_id, id)
);
