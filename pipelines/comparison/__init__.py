"""The workload that compares two datasets, with its page."""
