"""A gRPC server for an application: all it takes, and a model for applications in Python."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from types import TracebackType
from typing import Any

import grpc
from google.protobuf.json_format import MessageToDict

from anycable_tx.rpc.definition import METHODS, SERVICE, Method
from anycable_tx.testing.rpc_app import Application

__all__ = ["GrpcApp"]


class GrpcApp:
    """Serves *application* on ``127.0.0.1:port`` while its block runs; port 0 becomes a free one.

    *credentials* are those of ``grpc.ssl_server_credentials``; without them there is no TLS. Up to *threads* calls
    run at a time.
    """

    def __init__(self, application: Application, port: int = 0, credentials: Any = None, threads: int = 8) -> None:
        self._application = application
        self._server = grpc.server(ThreadPoolExecutor(threads), options=(("grpc.so_reuseport", 0),))
        handlers = {
            method.name: grpc.unary_unary_rpc_method_handler(
                self._handler(name, method), method.request.FromString, method.reply.SerializeToString
            )
            for name, method in METHODS.items()
        }
        self._server.add_generic_rpc_handlers((grpc.method_handlers_generic_handler(SERVICE, handlers),))
        credentials = credentials or grpc.insecure_server_credentials()
        self.port: int = self._server.add_secure_port(f"127.0.0.1:{port}", credentials)

    def _handler(self, name: str, method: Method) -> Callable[[Any, Any], Any]:
        def handle(request: Any, context: Any) -> Any:
            metadata = dict(context.invocation_metadata())
            if "v1" not in metadata.get("protov", "").split(","):
                return method.reply(error_msg="this application speaks v1 of the protocol only")
            asked = MessageToDict(request, preserving_proto_field_name=True)
            reply: Any = self._application.handle(name, asked, metadata.get("sid", ""))
            if reply is None:
                context.abort(grpc.StatusCode.UNIMPLEMENTED, f"there is no {method.name}")
            return method.reply(**reply)

        return handle

    def __enter__(self) -> GrpcApp:
        self._server.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None
    ) -> None:
        self._server.stop(0).wait()
