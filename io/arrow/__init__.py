"""Arrow tables on their way between workers: encoded, or on local disk."""
