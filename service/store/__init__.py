"""The request database: what was asked for, and what became of it."""
