"""The books: that nothing is lost and nothing is handled twice, and what is to come."""
