"""Built-in pub/sub adapters, one module each, reached through their providers only."""
