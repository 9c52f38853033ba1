"""Bytes in, bytes out: the WebSocket and HTTP faces of the server."""
