"""One option schema: command line, environment, YAML, validation and reference."""
