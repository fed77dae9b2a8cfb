"""Beam transforms over Arrow tables: keyed shuffle, execution per component, work in flight."""
