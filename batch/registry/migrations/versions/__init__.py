"""One module a version. What is released is never changed."""
