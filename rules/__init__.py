"""Business rules on Arrow tables and plain Python: no Beam, no files, no clock."""
