"""What the developer of a consumer writes: handlers of messages."""
