"""What is past its retention, as files on object storage; and payloads that are erased."""
