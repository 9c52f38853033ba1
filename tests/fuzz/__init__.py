"""Random input for everything that others can write to (F64)."""
