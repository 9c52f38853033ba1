"""Built-in brokers, one module each, reached through their providers only."""
