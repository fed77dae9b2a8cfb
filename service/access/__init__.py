"""Who calls, what they may do, and what all parts of a front end share."""
