-- What was sealed by the version before is no longer there in plain.
DROP INDEX svms_by_name;
DROP INDEX agents_by_name;
DROP INDEX agents_by_product;

ALTER TABLE api_tokens DROP COLUMN name;
ALTER TABLE api_tokens RENAME COLUMN sealed_name TO name;

ALTER TABLE svms DROP COLUMN name;
ALTER TABLE svms RENAME COLUMN sealed_name TO name;
ALTER TABLE svms DROP COLUMN version;
ALTER TABLE svms RENAME COLUMN sealed_version TO version;
ALTER TABLE svms DROP COLUMN hostname;
ALTER TABLE svms RENAME COLUMN sealed_hostname TO hostname;
ALTER TABLE svms DROP COLUMN product_uuid;
ALTER TABLE svms RENAME COLUMN sealed_product_uuid TO product_uuid;
ALTER TABLE svms DROP COLUMN report;
ALTER TABLE svms RENAME COLUMN sealed_report TO report;

ALTER TABLE agents DROP COLUMN name;
ALTER TABLE agents RENAME COLUMN sealed_name TO name;
ALTER TABLE agents DROP COLUMN version;
ALTER TABLE agents RENAME COLUMN sealed_version TO version;
ALTER TABLE agents DROP COLUMN hostname;
ALTER TABLE agents RENAME COLUMN sealed_hostname TO hostname;
ALTER TABLE agents DROP COLUMN product_uuid;
ALTER TABLE agents RENAME COLUMN sealed_product_uuid TO product_uuid;
ALTER TABLE agents DROP COLUMN boot_id;
ALTER TABLE agents RENAME COLUMN sealed_boot_id TO boot_id;
ALTER TABLE agents DROP COLUMN report;
ALTER TABLE agents RENAME COLUMN sealed_report TO report;

ALTER TABLE detections DROP COLUMN path;
ALTER TABLE detections RENAME COLUMN sealed_path TO path;
ALTER TABLE detections DROP COLUMN name;
ALTER TABLE detections RENAME COLUMN sealed_name TO name;
ALTER TABLE detections DROP COLUMN engine;
ALTER TABLE detections RENAME COLUMN sealed_engine TO engine;
ALTER TABLE detections DROP COLUMN blake3;
ALTER TABLE detections RENAME COLUMN sealed_blake3 TO blake3;
ALTER TABLE detections DROP COLUMN sha256;
ALTER TABLE detections RENAME COLUMN sealed_sha256 TO sha256;
ALTER TABLE detections DROP COLUMN member;
ALTER TABLE detections RENAME COLUMN sealed_member TO member;
ALTER TABLE detections DROP COLUMN container;
ALTER TABLE detections RENAME COLUMN sealed_container TO container;

ALTER TABLE quarantine_keys DROP COLUMN key;
ALTER TABLE quarantine_keys RENAME COLUMN sealed_key TO key;

ALTER TABLE maintenance_grants DROP COLUMN reason;
ALTER TABLE maintenance_grants RENAME COLUMN sealed_reason TO reason;

DROP TABLE domains;
DROP TABLE hosts;
ALTER TABLE sealed_hosts RENAME TO hosts;
ALTER TABLE sealed_domains RENAME TO domains;

CREATE INDEX api_tokens_by_name ON api_tokens (name_index);
CREATE INDEX svms_by_name ON svms (name_index);
CREATE INDEX agents_by_name ON agents (name_index);
CREATE INDEX agents_by_product ON agents (product_index);
