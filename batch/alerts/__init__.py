"""Deadlines are watched, and listeners are notified of events, each event at least once."""
