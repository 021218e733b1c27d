-- Where in a file it was found; NULL for the file itself.
ALTER TABLE detections ADD COLUMN member TEXT;
