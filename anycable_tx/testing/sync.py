"""Run an awaitable that needs no reactor, and get its result at once."""

from __future__ import annotations

from collections.abc import Awaitable
from typing import Any, TypeVar, cast

from twisted.internet.defer import Deferred
from twisted.python.failure import Failure

__all__ = ["NotDone", "result_of"]

T = TypeVar("T")


class NotDone(AssertionError):
    """The awaitable is still waiting for something."""


def result_of(awaitable: Awaitable[T]) -> T:
    """The result of *awaitable*, which must be able to finish now. Raises what it raised, or NotDone."""

    async def run() -> T:
        return await awaitable

    results: list[Any] = []
    Deferred.fromCoroutine(run()).addBoth(results.append)
    if not results:
        raise NotDone("the awaitable did not finish at once")
    if isinstance(results[0], Failure):
        results[0].raiseException()
    return cast(T, results[0])
