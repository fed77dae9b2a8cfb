"""Calls in threads: limits of time, retries, admission, several at a time; no files."""
