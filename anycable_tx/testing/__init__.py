"""For users' own tests: the delivery checker, a client, and provider conformance suites."""
