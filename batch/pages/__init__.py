"""A page process as a Beam pipeline: from pages of a table or cursor to published results."""
