"""Two nodes that share what they keep, and a page that proves that nothing is missed: ``python demo.py [PORT]``.

The page is at PORT (8080), the nodes are at the next two, and what they share, an embedded NATS server, at the third.
"""

from __future__ import annotations

import http.client
import itertools
import json
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

HERE = Path(__file__).parent
HOST = "127.0.0.1"
#: Seconds between two messages of the counter.
PERIOD = 0.2
KEY = secrets.token_hex()
ADMIN_KEY = secrets.token_hex(8)
TWISTD = [sys.executable, "-c", "from twisted.scripts.twistd import run; run()"]


class Node:
    """A process of the server."""

    def __init__(self, name: str, port: int, *options: str) -> None:
        self.name = name
        self.port = port
        env = {name: value for name, value in os.environ.items() if not name.startswith("ANYCABLE_")}
        env |= {"ANYCABLE_BROADCAST_KEY": KEY, "ANYCABLE_ADMIN_KEY": ADMIN_KEY}
        options = (
            f"--node_id={name}",
            f"--host={HOST}",
            f"--port={port}",
            "--ignore_config_path",
            "--broker=nats",
            "--pubsub=nats",
            "--noauth",
            "--public_streams",
            "--history_limit=5000",
            "--admin",
            "--log_level=warn",
            *options,
        )
        command = [*TWISTD, "--nodaemon", "--pidfile=", "anycable", *options]
        # In a session of its own, so that Ctrl-C ends it when we say so, and not before.
        self.process = subprocess.Popen(command, env=env, start_new_session=True)

    def ask(self, method: str, path: str, body: object = None) -> int:
        """The status of the answer. Raises OSError and HTTPException while nobody answers."""
        connection = http.client.HTTPConnection(HOST, self.port, timeout=10)
        try:
            connection.request(method, path, json.dumps(body), {"Authorization": f"Bearer {KEY}"})
            return connection.getresponse().status
        finally:
            connection.close()

    def wait(self) -> None:
        """Until it is ready. Raises SystemExit when it is not going to be."""
        while self.process.poll() is None:
            try:
                if self.ask("GET", "/ready") == 200:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.1)
        raise SystemExit(f"the node {self.name} did not start")


class Application:
    """What publishes: a counter, for ever, and what people say. It asks the nodes in turn until one has it."""

    def __init__(self, nodes: list[Node]) -> None:
        self.nodes = itertools.cycle(nodes)

    def publish(self, stream: str, message: object) -> None:
        """Publish, once: one that was stored and not acknowledged is known by its id."""
        body = {"stream": stream, "data": json.dumps(message), "meta": {"id": secrets.token_hex(8)}}
        while True:
            try:
                if next(self.nodes).ask("POST", "/_broadcast", body) == 201:
                    return
            except (OSError, http.client.HTTPException):
                pass
            time.sleep(0.1)

    def count(self) -> None:
        """1, 2, 3 and so on."""
        for n in itertools.count(1):
            self.publish("counter", {"n": n, "at": time.time()})
            time.sleep(PERIOD)


class Pages(BaseHTTPRequestHandler):
    """The page, the official JavaScript client, and the way to say something."""

    protocol_version = "HTTP/1.1"
    nodes: list[Node]
    application: Application

    def do_GET(self) -> None:
        """A file, or the addresses of the nodes."""
        path = self.path.partition("?")[0]
        if path == "/":
            self.answer((HERE / "page.html").read_bytes(), "text/html; charset=utf-8")
        elif path == "/nodes":
            nodes = [{"name": node.name, "url": f"ws://{HOST}:{node.port}/cable"} for node in self.nodes]
            self.answer(json.dumps(nodes).encode(), "application/json")
        elif (
            path.startswith("/node_modules/")
            and path.endswith(".js")
            and (HERE / path[1:]).is_file()
            and ".." not in path
        ):
            self.answer((HERE / path[1:]).read_bytes(), "text/javascript; charset=utf-8")
        else:
            self.send_error(404)

    def do_POST(self) -> None:
        """Somebody says something."""
        said = json.loads(self.rfile.read(min(int(self.headers["Content-Length"]), 10_000)))
        self.application.publish("chat", {"name": str(said["name"])[:30], "text": str(said["text"])[:500]})
        self.answer(b"", "text/plain")

    def answer(self, body: bytes, kind: str) -> None:
        self.send_response(200)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Cache-Control", "no-store")
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Nothing."""


def fetch_client() -> None:
    """The official client, from npm, the first time."""
    if not (HERE / "node_modules" / "@anycable" / "web").exists():
        print("Fetching the JavaScript client (npm install) ...")
        subprocess.run(["npm", "install", "--no-audit", "--no-fund", "--silent"], cwd=HERE, check=True)


def main() -> None:
    port = int(sys.argv[1]) if len(sys.argv) > 1 else 8080
    fetch_client()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    nats = f"nats://{HOST}:{port + 3}"
    nodes: list[Node] = []
    with tempfile.TemporaryDirectory() as store:
        try:
            nodes.append(Node("one", port + 1, "--embed_nats", f"--enats_addr={nats}", f"--enats_store_dir={store}"))
            nodes[0].wait()
            nodes.append(Node("two", port + 2, f"--nats_servers={nats}"))
            nodes[1].wait()
            Pages.nodes, Pages.application = nodes, Application(nodes)
            threading.Thread(target=Pages.application.count, daemon=True).start()
            print(f"Open http://{HOST}:{port} in two windows, and press the button.")
            print(
                f"The admin pages: http://{HOST}:{port + 1}/admin and {port + 2}, the key is {ADMIN_KEY}", flush=True
            )
            ThreadingHTTPServer((HOST, port), Pages).serve_forever()
        except KeyboardInterrupt:
            pass
        finally:
            for node in reversed(nodes):  # the one with the NATS server last
                node.process.terminate()
                node.process.wait()


if __name__ == "__main__":
    main()
