"""Objects by URI: local files, Google Cloud Storage, Amazon S3."""
