"""What a node answers while the caller waits: one component, a log, a restart."""
