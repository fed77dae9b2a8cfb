"""Which trades of a day are delivered, and how trades settle."""
