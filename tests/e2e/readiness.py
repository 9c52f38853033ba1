"""Waiting until a node can do its work."""

from __future__ import annotations

import http.client
import time

from anycable_tx.testing.processes import HOST, ProcessFailed, Server

__all__ = ["wait_until_ready"]


def wait_until_ready(node: Server, within: float) -> None:
    """Done when the node can do its work. Raises ProcessFailed."""
    deadline = time.monotonic() + within
    while True:
        connection = http.client.HTTPConnection(HOST, node.port, timeout=5)
        try:
            connection.request("GET", "/ready")
            answer = connection.getresponse()
            text = answer.read().decode()
            if answer.status == 200:
                return
        except (OSError, http.client.HTTPException) as e:
            text = str(e)
        finally:
            connection.close()
        if time.monotonic() > deadline:
            raise ProcessFailed(f"a node is not ready: {text}\n{node.log[-3000:]}")
        time.sleep(0.1)
