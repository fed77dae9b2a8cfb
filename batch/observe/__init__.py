"""What object storage says of a run: its progress, its components, its failures."""
