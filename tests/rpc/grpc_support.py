"""The client's side of gRPC calls on an asyncio loop, and servers that answer with any status."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager, contextmanager
from functools import wraps
from typing import Any

import grpc
from twisted.internet.defer import Deferred

from anycable_tx.config.declarations.rpc_transports import GRPC
from anycable_tx.metrics import Metrics
from anycable_tx.rpc.grpc_transport import GrpcTransport, create
from anycable_tx.rpc.transport import CallFailed, RpcReply
from tests.rpc.support import settings

#: Longer than any of these calls takes, shorter than the patience of the test run.
LONG = 10.0
DEFAULTS = {option.name: option.default for option in GRPC}


def run(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """A test that is a coroutine."""

    @wraps(test)
    def runs(*args: Any, **kwargs: Any) -> None:
        asyncio.run(asyncio.wait_for(test(*args, **kwargs), 60))

    return runs


def make(host: str, **given: Any) -> GrpcTransport:
    sizes = {name: given.pop(name, default) for name, default in DEFAULTS.items()}
    return create(settings(rpc_host=host, **given) | sizes, None, Metrics())


class Client:
    """Calls through *transport* from asyncio."""

    def __init__(self, transport: GrpcTransport) -> None:
        self.transport = transport

    def begin(self, method: str = "connect", within: float | None = LONG, **request: Any) -> Deferred[RpcReply]:
        return Deferred.fromCoroutine(self.transport.call(method, {"env": {}} | request, "s1", within))

    async def call(self, method: str = "connect", within: float | None = LONG, **request: Any) -> RpcReply:
        reply: RpcReply = await asked(self.begin(method, within, **request))
        return reply

    async def failure(self, method: str = "connect", within: float | None = LONG, **request: Any) -> CallFailed:
        try:
            reply = await self.call(method, within, **request)
        except CallFailed as e:
            return e
        raise AssertionError(reply)

    async def stop(self) -> None:
        await asked(Deferred.fromCoroutine(self.transport.stop()))

    async def until(self, condition: Callable[[], object]) -> None:
        async with asyncio.timeout(LONG):
            while not condition():  # noqa: ASYNC110 - nobody tells of it
                await asyncio.sleep(0.005)


async def asked(deferred: Deferred[Any]) -> Any:
    return await deferred.asFuture(asyncio.get_running_loop())


@asynccontextmanager
async def client(host: str | int, **given: Any) -> AsyncIterator[Client]:
    """A client of the backend at *host*, or at that port of this machine."""
    transport = make(f"127.0.0.1:{host}" if isinstance(host, int) else host, **given)
    await transport.start()
    made = Client(transport)
    try:
        yield made
    finally:
        await made.stop()


#: Given the path of the call, its bytes and its context, answers bytes.
Behaviour = Callable[[str, bytes, grpc.ServicerContext], bytes]


class _Handler(grpc.GenericRpcHandler):
    def __init__(self, behaviour: Behaviour) -> None:
        self._behaviour = behaviour

    def service(self, handler_call_details: grpc.HandlerCallDetails) -> grpc.RpcMethodHandler:
        path = handler_call_details.method

        def handle(request: bytes, context: grpc.ServicerContext) -> bytes:
            return self._behaviour(path, request, context)

        return grpc.unary_unary_rpc_method_handler(handle)


@contextmanager
def backend(behaviour: Behaviour, *options: tuple[str, Any], credentials: Any = None) -> Iterator[int]:
    """A server that does what *behaviour* says with every call; gives its port."""
    server = grpc.server(ThreadPoolExecutor(4), options=options)
    server.add_generic_rpc_handlers((_Handler(behaviour),))
    add = server.add_insecure_port
    port = server.add_secure_port("127.0.0.1:0", credentials) if credentials else add("127.0.0.1:0")
    server.start()
    try:
        yield port
    finally:
        server.stop(0).wait()


def aborts(status: grpc.StatusCode, details: str = "no") -> Behaviour:
    def behave(path: str, request: bytes, context: grpc.ServicerContext) -> bytes:
        context.abort(status, details)
        return b""

    return behave
