"""The benchmark: anycable-tx against a stock Autobahn server, run with ``python -m tests.benchmarks``."""
