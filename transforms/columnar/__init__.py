"""Functions over whole columns: hashing, sorting into components, totals that can't overflow."""
