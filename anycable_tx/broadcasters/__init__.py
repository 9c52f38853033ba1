"""Built-in broadcasters, one module each, reached through their providers only."""
