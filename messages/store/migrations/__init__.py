"""Migrations of the tables of messages."""
