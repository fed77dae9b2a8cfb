"""Rollouts of keyed processes: their record in storage, and who has which rule."""
