"""The domain, sans-I/O: messages, sessions, delivery. No reactor, no sockets, no clock of its own."""
