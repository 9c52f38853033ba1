"""Fixtures of the tests that run over both ways to write."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from tests.transports.support import Cable


@pytest.fixture(params=["direct", "plain"])
def cable(request: pytest.FixtureRequest) -> Iterator[Callable[..., Cable]]:
    """Makes servers; at the end nothing may be left of their clients."""
    made: list[Cable] = []

    def make(**settings: Any) -> Cable:
        made.append(Cable(request.param, **settings))
        return made[-1]

    yield make
    for each in made:
        each.close()
