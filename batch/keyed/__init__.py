"""A keyed process as a Beam pipeline: from its input files to its published results."""
