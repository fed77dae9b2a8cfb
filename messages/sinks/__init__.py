"""Sinks: what posts the messages of a topic to outside streams, Kafka or a webhook."""
