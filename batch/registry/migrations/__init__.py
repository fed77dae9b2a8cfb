"""The registry's schema, version by version; see `env.py` for how to add one."""
