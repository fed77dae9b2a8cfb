"""What a message is, and the moment at which it is due."""
