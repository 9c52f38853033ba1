"""Redis and Valkey: addresses, connections that come back, routing, and the shared client."""
