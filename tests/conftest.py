"""Fixtures and hooks shared by all tests."""
