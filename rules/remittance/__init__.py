"""What is remitted to investors for a month, and the lines of their report."""
