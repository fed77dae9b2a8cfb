"""The scheduler: posts messages that are due to the stream. It knows topics and due times only."""
