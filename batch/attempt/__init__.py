"""One attempt in this process, without a registry: carried out, shown, verified."""
