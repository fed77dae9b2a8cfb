"""What the developer of a workload writes: definitions of batch processes and their parameters."""
