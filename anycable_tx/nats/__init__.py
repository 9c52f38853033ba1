"""NATS: the shared connection and what the parts that live on it have in common."""
