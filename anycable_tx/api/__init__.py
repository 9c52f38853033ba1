"""The REST API: publishing with receipts, who is present, and the history of streams, for backends."""
