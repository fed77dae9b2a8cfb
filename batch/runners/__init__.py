"""Beam runners, and their jobs on engines: how they are found, watched and canceled."""
