"""Calls to a backend over gRPC."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from twisted.internet.defer import Deferred
from twisted.logger import Logger

from anycable_tx.errors import ConfigurationError
from anycable_tx.metrics import Metrics
from anycable_tx.rpc.grpc_address import Addresses, parse
from anycable_tx.rpc.grpc_tls import Tunnel, authorities
from anycable_tx.rpc.transport import CallFailed, Code, RpcReply

try:
    import grpc
    from grpc import StatusCode

    from anycable_tx.rpc.grpc_hosts import Channel, Hosts, channel_options
    from anycable_tx.rpc.grpc_messages import decode, encode
except ImportError as e:
    _missing: str | None = str(e)
else:
    _missing = None

__all__ = ["GrpcTransport", "create"]

#: Bytes of one answer, unless ``rpc_max_call_recv_size`` says otherwise.
MAX_ANSWER = 4 * 1024 * 1024
#: What gRPC libraries say of a message that is over a limit, in lower case.
TOO_LARGE = ("message larger than max", "exceeds maximum size")


class GrpcTransport:
    """Calls the backend at *addresses* from the asyncio loop that the reactor runs on.

    A call is made only where a connection stands, so whatever fails before that was not delivered. *pem* are the
    authorities to check the backend's certificate with (None: gRPC's own).
    """

    log = Logger()

    def __init__(self, settings: Mapping[str, Any], addresses: Addresses, pem: bytes | None = None) -> None:
        self.announcement: str = settings["rpc_host"].strip()
        self._addresses = addresses
        self._pem = pem
        self._verify: bool = settings["rpc_tls_verify"]
        self._max_request: int = settings["rpc_max_call_send_size"]
        self._max_answer: int = settings["rpc_max_call_recv_size"] or MAX_ANSWER
        self._tunnels: list[Tunnel] = []
        self._hosts: Hosts | None = None
        self._stopped = False

    async def start(self) -> None:
        """Begin to connect; does not need the backend to be there.

        Raises ConfigurationError when the certificate is not to be checked and the sockets that takes cannot be made.
        """
        if self._addresses.tls and not self._verify:
            self.log.warn("The backend's certificate is not checked: rpc_tls_verify is off", attrs={"context": "rpc"})
            try:
                self._tunnels = [Tunnel(host.name, host.port) for host in self._addresses.hosts]
            except OSError as e:
                raise ConfigurationError(
                    f"rpc_tls_verify: false needs a socket in the directory for temporary files: {e}"
                ) from None
        # gRPC's objects belong to the loop that runs while they are made, and none may be running yet.
        asyncio.get_event_loop().call_soon(self._open)

    async def stop(self) -> None:
        """Close every connection; calls under way fail."""
        self._stopped = True
        if self._hosts is not None:
            await Deferred.fromFuture(asyncio.ensure_future(self._hosts.close()))
        for tunnel in self._tunnels:
            tunnel.close()

    async def call(self, method: str, request: dict[str, Any], sid: str, within: float | None) -> RpcReply:
        """One attempt; see ``Transport``.

        A request over ``rpc_max_call_send_size`` is not sent. An answer over ``rpc_max_call_recv_size`` fails with
        TOO_LARGE (RA-21).
        """
        data = encode(method, request)
        if 0 < self._max_request < len(data):
            text = f"the request has {len(data)} bytes; rpc_max_call_send_size allows {self._max_request}"
            raise CallFailed(Code.TOO_LARGE, text, delivered=False)
        if not (sid.isascii() and sid.isprintable()):
            text = "the session's id cannot be sent: gRPC's metadata is printable ASCII"
            raise CallFailed(Code.INVALID, text, delivered=False)
        answer = await Deferred.fromFuture(asyncio.ensure_future(self._call(method, data, sid, within)))
        return decode(method, answer)

    def problem(self) -> str:
        """Why no call can succeed now: no host can be reached (RA-41)."""
        return "" if self._hosts is None else self._hosts.problem()

    def connections(self) -> int:
        """How many hosts are connected; a name that stands for several counts as one."""
        return 0 if self._hosts is None else self._hosts.connections()

    def _open(self) -> None:
        if self._hosts is None and not self._stopped:
            self._hosts = Hosts(self._channels)

    def _channels(self, changed: Callable[[], None]) -> list[Channel]:
        options = channel_options(self._max_answer)
        if self._tunnels:
            return [
                # Unless told, gRPC would name the socket as the host it speaks to.
                Channel(host, (*options, ("grpc.default_authority", host.authority)), None, changed, tunnel)
                for host, tunnel in zip(self._addresses.hosts, self._tunnels, strict=True)
            ]
        credentials = grpc.ssl_channel_credentials(self._pem) if self._addresses.tls else None
        return [Channel(host, options, credentials, changed) for host in self._addresses.hosts]

    async def _call(self, method: str, data: bytes, sid: str, within: float | None) -> bytes:
        now = asyncio.get_running_loop().time
        until = None if within is None else now() + within
        self._open()
        if self._hosts is None:
            raise CallFailed(Code.CANCELED, "the server is stopping", delivered=False)
        channel = self._hosts.pick() or await self._hosts.wait(until)
        left = None if until is None else until - now()
        if left is not None and left <= 0:
            raise CallFailed(Code.TIMEOUT, "the time of the call was up before it was sent", delivered=False)
        try:
            answer: bytes = await channel.calls[method](data, timeout=left, metadata=(("sid", sid), ("protov", "v1")))
        except grpc.RpcError as e:
            raise self._failure(e.code(), e.details() or "") from None
        except asyncio.CancelledError:
            task = asyncio.current_task()
            if task is not None and task.cancelling():
                raise
            raise CallFailed(Code.CANCELED, "the connection was closed here", delivered=True) from None
        return answer

    def _failure(self, status: StatusCode, details: str) -> CallFailed:
        """What a call that was sent failed with."""
        text = f"{status.name}: {details:.500}"
        if status is StatusCode.RESOURCE_EXHAUSTED:
            if not any(each in details.lower() for each in TOO_LARGE):
                return CallFailed(Code.EXHAUSTED, text, delivered=False)
            if details.startswith("SERVER:"):
                return CallFailed(Code.TOO_LARGE, f"the backend refused the request: {text}", delivered=False)
            text = f"the answer is over rpc_max_call_recv_size ({self._max_answer} bytes): {text}"
            return CallFailed(Code.TOO_LARGE, text, delivered=True)
        return CallFailed(_CODES.get(status, Code.UNKNOWN), text, delivered=status not in _NOT_CARRIED_OUT)


if _missing is None:
    #: What the status of a call means; any other is UNKNOWN.
    _CODES = {
        StatusCode.UNAVAILABLE: Code.UNAVAILABLE,
        StatusCode.DEADLINE_EXCEEDED: Code.TIMEOUT,
        StatusCode.UNIMPLEMENTED: Code.UNIMPLEMENTED,
        StatusCode.UNAUTHENTICATED: Code.UNAUTHENTICATED,
        StatusCode.INVALID_ARGUMENT: Code.INVALID,
    }
    _NOT_CARRIED_OUT = frozenset((StatusCode.UNIMPLEMENTED, StatusCode.UNAUTHENTICATED))


def create(settings: Mapping[str, Any], reactor: Any, metrics: Metrics) -> GrpcTransport:
    """A transport for the ``rpc_*`` options; *reactor* has to run on asyncio.

    Raises ConfigurationError for an address or authorities nobody can use, and when gRPC is not installed (RA-42).
    """
    if _missing is not None:
        raise ConfigurationError(
            f"rpc_host: gRPC needs packages that cannot be imported ({_missing}); install them with "
            "pip install anycable-tx[grpc], or call the backend over HTTP: rpc_host=http://host/path"
        )
    addresses = parse(settings)
    verify = settings["rpc_tls_verify"]
    if addresses.tls and not verify and not addresses.hosts[0].name:
        raise ConfigurationError("rpc_tls_verify: TLS through a unix: address is always checked; accepted: true")
    # Read even if nothing is checked with them: a wrong value is found before somebody relies on it.
    pem = authorities(settings) if addresses.tls else None
    transport = GrpcTransport(settings, addresses, pem)
    metrics.gauge("grpc_active_conn_num", transport.connections)
    return transport
