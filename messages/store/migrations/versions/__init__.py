"""The versions of the tables of messages, one module each."""
