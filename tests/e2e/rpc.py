"""An application behind the server, over gRPC or HTTP, that can be away and come back on the same port."""

from __future__ import annotations

from contextlib import AbstractContextManager
from types import TracebackType

from anycable_tx.testing.processes import free_port
from anycable_tx.testing.rpc_app import Application
from anycable_tx.testing.rpc_grpc_app import GrpcApp
from anycable_tx.testing.rpc_http_app import HttpApp

__all__ = ["IMPLEMENTATIONS", "Backend"]

IMPLEMENTATIONS = ("grpc", "http")


class Backend:
    """*app* behind a server of its own. A context manager; ``options`` make a server call it.

    Over gRPC it handles so many calls at a time as it has *threads*, over HTTP all of them.
    """

    def __init__(self, impl: str, app: Application, *, threads: int = 8) -> None:
        self.app = app
        self._threads = threads
        self._impl = impl
        self._port = free_port()
        self._running: AbstractContextManager[object] | None = None
        host = f"127.0.0.1:{self._port}"
        self.options = (f"--rpc_host={host}" if impl == "grpc" else f"--rpc_host=http://{host}/_anycable",)

    def start(self) -> None:
        """Serve on the port it had before."""
        if self._impl == "grpc":
            self._running = GrpcApp(self.app, port=self._port, threads=self._threads)
        else:
            self._running = HttpApp(self.app, port=self._port)
        self._running.__enter__()

    def stop(self) -> None:
        """Be away."""
        running, self._running = self._running, None
        if running is not None:
            running.__exit__(None, None, None)

    def __enter__(self) -> Backend:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        self.stop()
