"""The commands of messages, which `ledgerbeam` finds by entry points."""
