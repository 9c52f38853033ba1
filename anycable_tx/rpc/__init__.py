"""Calls to the application's backend: over gRPC or HTTP, limited, retried where safe, and queued at the end."""
