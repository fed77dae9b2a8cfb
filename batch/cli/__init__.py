"""The command `ledgerbeam`: verbs, arguments, and what people read on a terminal."""
