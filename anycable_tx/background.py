"""Work that goes on in the background: held until it ends, reported when it fails, ended with the server."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from twisted.internet.defer import CancelledError, Deferred
from twisted.logger import Logger
from twisted.python.failure import Failure

from anycable_tx.errors import BrokerUnavailable
from anycable_tx.metrics import Metrics

__all__ = ["RETRIES", "Background", "done_within", "sleep"]

T = TypeVar("T")

#: What is needed from a broker that fails is asked for again after these many seconds.
RETRIES = (0.1, 0.3, 1.0, 2.0)


class Background:
    """What runs work in the background. *reactor* supplies the time."""

    log = Logger()

    def __init__(self, reactor: Any, metrics: Metrics) -> None:
        self.reactor = reactor
        self.metrics = metrics
        self._running: set[Deferred[None]] = set()

    def spawn(self, work: Coroutine[Any, Any, None]) -> None:
        """Run *work* now as far as it goes; hold it until it ends, and report what it raises.

        Most work ends at once, and then costs no Deferred.
        """
        try:
            waiting = work.send(None)
        except StopIteration:
            return
        except Exception:
            self._report(Failure())  # type: ignore[no-untyped-call]
            return
        deferred = Deferred.fromCoroutine(_go_on(work, waiting))
        if not deferred.called or deferred.paused:
            self._running.add(deferred)
            deferred.addBoth(self._forget, deferred)
        deferred.addErrback(self._report)

    def _forget(self, result: Any, deferred: Deferred[None]) -> Any:
        self._running.discard(deferred)
        return result

    def _report(self, failure: Failure) -> None:
        if isinstance(failure.value, CancelledError):  # the node is stopping
            return
        self.metrics.count("internal_errors_total")
        self.log.failure("unexpected error", failure=failure)

    def cancel_all(self) -> None:
        """End what has not ended."""
        for deferred in list(self._running):
            deferred.cancel()

    async def _patiently(self, ask: Callable[[], Awaitable[T]]) -> T:
        """What *ask* comes to; while the broker is unavailable it is asked again, and again, but not for ever."""
        for delay in RETRIES:
            try:
                return await ask()
            except BrokerUnavailable:
                self.metrics.count("broker_errors_total")
                await sleep(self.reactor, delay)
        return await ask()

    async def _attempt(self, failed: str, work: Awaitable[object], **attrs: str) -> None:
        """Let the broker do *work*; when it cannot, count that and go on."""
        try:
            await work
        except Exception:
            self._broker_failed(failed, **attrs)

    def _broker_failed(self, text: str, **attrs: str) -> None:
        """To be called by the handler of what went wrong. A broker that is away is no reason for a traceback."""
        self.metrics.count("broker_errors_total")
        attrs = {"context": "broker", **attrs}
        error = sys.exception()
        if isinstance(error, BrokerUnavailable):
            self.log.warn("{text}: {error}", text=text, error=error, attrs=attrs)
        else:
            self.log.failure("{text}", text=text, attrs=attrs)


async def sleep(reactor: Any, seconds: float) -> None:
    """Done after so many seconds of *reactor*'s time."""
    done: Deferred[None] = Deferred(lambda d: call.cancel())
    call = reactor.callLater(seconds, done.callback, None)
    await done


async def done_within(reactor: Any, seconds: float, work: Deferred[Any]) -> bool:
    """Wait for *work*, but not longer than so many seconds. Is it done? It goes on if it is not."""
    enough: Deferred[None] = Deferred()

    def wake(result: Any = None) -> Any:
        if not enough.called:
            enough.callback(None)
        return result

    work.addBoth(wake)
    call = reactor.callLater(seconds, wake)
    try:
        await enough
    finally:
        if call.active():
            call.cancel()
    return bool(work.called)


async def _go_on(work: Coroutine[Any, Any, None], waiting: Any) -> None:
    """Run *work*, which has begun and waits for the Deferred *waiting*, to its end."""
    while True:
        try:
            await waiting
        except GeneratorExit:  # it was forgotten: nothing can end it any more
            work.close()
            raise
        except BaseException as e:
            failure: BaseException | None = e
        else:
            failure = None
        try:
            waiting = work.send(None) if failure is None else work.throw(failure)
        except StopIteration:
            return
