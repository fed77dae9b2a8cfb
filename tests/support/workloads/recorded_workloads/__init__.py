"""Workloads that log their calls, and that a test can hold, fail or kill by files."""
