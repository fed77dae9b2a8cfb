"""Business days, the changes of calendars, and times of day."""
