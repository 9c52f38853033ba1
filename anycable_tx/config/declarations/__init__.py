"""The built-in options, one module a theme; each has its tuples of Option and nothing else."""
