"""Servers with an admin page, over both ways to write."""

from tests.transports.conftest import cable

__all__ = ["cable"]
