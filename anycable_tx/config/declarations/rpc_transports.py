"""Options of one way of calling the backend only: gRPC, or HTTP."""

from __future__ import annotations

from anycable_tx.config.declarations.backend import SECTION
from anycable_tx.config.option import Option

__all__ = ["GRPC", "HTTP"]

_RECEIVED = Option(
    "rpc_max_call_recv_size",
    "int",
    0,
    "size of an answer; 0: 4194304",
    key="rpc.max_recv_size",
    section=SECTION,
    minimum=0,
    unit="bytes",
)

GRPC = (
    _RECEIVED,
    Option(
        "rpc_max_call_send_size",
        "int",
        0,
        "size of a gRPC request; 0: no limit",
        key="rpc.max_send_size",
        section=SECTION,
        minimum=0,
        unit="bytes",
    ),
)

HTTP = (
    _RECEIVED,
    Option(
        "http_rpc_secret",
        help="bearer token of HTTP calls; empty: derived from secret; none: no token",
        key="rpc.secret",
        section=SECTION,
        secret=True,
    ),
    Option(
        "http_rpc_timeout",
        "float",
        0,
        "old name of rpc_request_timeout, for HTTP",
        section=SECTION,
        tag="D",
        successor="rpc_request_timeout",
        file=False,
    ),
)
