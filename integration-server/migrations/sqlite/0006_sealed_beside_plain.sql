-- Places for sealed values beside the plain ones. The server fills them in one
-- transaction before it goes on to the next version, which removes the plain ones.

-- What values are sealed with, wrapped by the master key, which is never in here.
CREATE TABLE data_keys (
    id      BIGINT NOT NULL PRIMARY KEY,
    purpose TEXT   NOT NULL CHECK (purpose IN ('values', 'index')),
    wrapped BLOB   NOT NULL,
    made_ms BIGINT NOT NULL
);

ALTER TABLE api_tokens ADD COLUMN sealed_name BLOB NOT NULL DEFAULT '';
ALTER TABLE api_tokens ADD COLUMN name_index BLOB NOT NULL DEFAULT '';

ALTER TABLE svms ADD COLUMN sealed_name BLOB NOT NULL DEFAULT '';
ALTER TABLE svms ADD COLUMN name_index BLOB NOT NULL DEFAULT '';
ALTER TABLE svms ADD COLUMN sealed_version BLOB;
ALTER TABLE svms ADD COLUMN sealed_hostname BLOB NOT NULL DEFAULT '';
ALTER TABLE svms ADD COLUMN sealed_product_uuid BLOB;
ALTER TABLE svms ADD COLUMN sealed_report BLOB;

ALTER TABLE agents ADD COLUMN sealed_name BLOB NOT NULL DEFAULT '';
ALTER TABLE agents ADD COLUMN name_index BLOB NOT NULL DEFAULT '';
ALTER TABLE agents ADD COLUMN sealed_version BLOB;
ALTER TABLE agents ADD COLUMN sealed_hostname BLOB NOT NULL DEFAULT '';
ALTER TABLE agents ADD COLUMN sealed_product_uuid BLOB;
ALTER TABLE agents ADD COLUMN product_index BLOB;
ALTER TABLE agents ADD COLUMN sealed_boot_id BLOB;
ALTER TABLE agents ADD COLUMN sealed_report BLOB;

ALTER TABLE detections ADD COLUMN sealed_path BLOB NOT NULL DEFAULT '';
ALTER TABLE detections ADD COLUMN sealed_name BLOB NOT NULL DEFAULT '';
ALTER TABLE detections ADD COLUMN sealed_engine BLOB NOT NULL DEFAULT '';
ALTER TABLE detections ADD COLUMN sealed_blake3 BLOB NOT NULL DEFAULT '';
ALTER TABLE detections ADD COLUMN sealed_sha256 BLOB;
ALTER TABLE detections ADD COLUMN sealed_member BLOB;
ALTER TABLE detections ADD COLUMN sealed_container BLOB;

ALTER TABLE quarantine_keys ADD COLUMN sealed_key BLOB NOT NULL DEFAULT '';

ALTER TABLE maintenance_grants ADD COLUMN sealed_reason BLOB NOT NULL DEFAULT '';

-- A hypervisor's URI and a domain's UUID say who they are: rows are named by their
-- keyed indexes.
CREATE TABLE sealed_hosts (
    id         TEXT   NOT NULL PRIMARY KEY,
    uri        BLOB   NOT NULL,
    host       BLOB   NOT NULL,
    datacenter BLOB   NOT NULL,
    cluster    BLOB   NOT NULL,
    error      BLOB,
    read_ms    BIGINT,
    tried_ms   BIGINT
);
CREATE TABLE sealed_domains (
    host_id TEXT   NOT NULL REFERENCES sealed_hosts (id) ON DELETE CASCADE,
    id      TEXT   NOT NULL,
    uuid    BLOB   NOT NULL,
    name    BLOB   NOT NULL,
    state   TEXT   NOT NULL,
    PRIMARY KEY (host_id, id)
);
