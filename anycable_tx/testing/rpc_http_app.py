"""An application's side of HTTP calls, with nothing but the standard library."""

from __future__ import annotations

import hmac
import json
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread

from anycable_tx.testing.rpc_app import Application

__all__ = ["HttpApp"]


class HttpApp(ThreadingHTTPServer):
    """While it is a context, serves *app* below ``url`` on 127.0.0.1; given a *secret*, only to who presents it."""

    request_queue_size = 128

    def __init__(self, app: Application, port: int = 0, *, secret: str = "") -> None:
        super().__init__(("127.0.0.1", port), _Handler)
        self.app, self.secret = app, secret
        self.url = f"http://127.0.0.1:{self.server_port}/_anycable"

    def __enter__(self) -> HttpApp:
        Thread(target=self.serve_forever, args=(0.02,), daemon=True).start()
        return self

    def __exit__(self, *error: object) -> None:
        self.shutdown()
        self.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: HttpApp
    protocol_version = "HTTP/1.1"  # connections stay open
    wbufsize = -1  # an answer leaves in one piece

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"] or 0))
        status, document = self._answer(body, self.headers["authorization"] or "")
        self.send_response(status)
        self.send_header("content-length", str(len(document)))
        self.end_headers()
        self.wfile.write(document)

    def _answer(self, body: bytes, token: str) -> tuple[int, bytes]:
        if self.server.secret and not hmac.compare_digest(token.encode(), f"Bearer {self.server.secret}".encode()):
            return 401, b"a bearer token is needed"
        base, _, method = self.path.partition("?")[0].rpartition("/")
        if base != "/_anycable" or method not in ("connect", "command", "disconnect", "restore"):
            return 404, b"not found"
        try:
            request = json.loads(body)
        except ValueError:
            return 422, b"the body is not JSON"
        reply = self.server.app.handle(method, request, self.headers["x-anycable-meta-sid"] or "")
        return (404, b"not found") if reply is None else (200, json.dumps(reply).encode())

    def log_message(self, format: str, *args: object) -> None: ...
