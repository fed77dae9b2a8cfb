"""Consumers: what handles the messages of the stream, bucket by bucket."""
