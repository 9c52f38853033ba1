"""What is told about the server to those who watch it: metrics for Prometheus, for StatsD and in the log."""
