-- The container of the process that opened it; NULL for none.
ALTER TABLE detections ADD COLUMN container TEXT;
