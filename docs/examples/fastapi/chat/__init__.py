"""A chat."""
