"""The registry: runs, their attempts and their events in a SQL database."""
