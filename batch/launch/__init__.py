"""Recorded attempts in processes of their own, each under a launcher that holds a lease."""
