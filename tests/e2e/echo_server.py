"""A server whose WebSockets echo: its whole transport, with nothing behind it. For test_autobahn.

``python echo_server.py PORT WAY``: *WAY* is how frames leave, direct or plain.
"""

from __future__ import annotations

import sys
from typing import Any

from twisted.internet import reactor

from anycable_tx.config.load import defaults
from anycable_tx.server import Server
from anycable_tx.transports.frames import text_frame


class Echo:
    """What replaces a connection's session."""

    __slots__ = ()

    def _open(self, node: Any, head: Any, token: str, *, extended: bool) -> None:
        """Let everybody in, and say nothing."""

    def _text(self: Any, payload: bytes, *, is_text: bool) -> None:
        if not is_text:
            self.write(b"\x82" + text_frame(payload)[1:])
            return
        try:
            payload.decode()
        except UnicodeDecodeError:
            self.close(1007, "not UTF-8")
        else:
            self.send_all([payload])


def main() -> None:
    port, way = int(sys.argv[1]), sys.argv[2]
    settings = defaults(
        public=True,
        port=port,
        http_broadcast_port=port,
        path=("/*",),
        fast_path=way == "direct",
        enable_ws_compression=True,
        max_message_size=1 << 25,
        ws_max_pending_size=0,
    )
    factory = Server(settings, reactor).factory
    factory._connection = type("EchoConnection", (Echo, factory._connection), {"__slots__": ()})
    reactor.listenTCP(port, factory, interface="127.0.0.1")
    factory.start()
    reactor.run()


main()
