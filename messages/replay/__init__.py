"""The same handlers on Beam: what was posted in a range of time, or lies in archives."""
