"""The example applications as their readers start them, and somebody who uses one over HTTP."""

from __future__ import annotations

import http.cookiejar
import json
import os
import signal
import subprocess
import sys
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from anycable_tx.testing.processes import HOST, free_port
from tests.e2e.process import COMMAND, Process, accepts, environment, until

ROOT = Path(__file__).resolve().parent.parent.parent
SECRET = "the-secret-of-the-application-itself"


@dataclass(frozen=True)
class Example:
    """How to start an example, and how its pages send what was filled in."""

    name: str
    command: tuple[str, ...]
    sends_json: bool


DJANGO = Example("django", ("manage.py", "runserver", "--noreload", f"{HOST}:{{port}}"), sends_json=False)
FASTAPI = Example("fastapi", ("-m", "uvicorn", "chat.app:app", f"--host={HOST}", "--port={port}"), sends_json=True)
FLASK = Example("flask", ("-m", "flask", "--app=chat", "run", f"--host={HOST}", "--port={port}"), sends_json=True)


@dataclass
class Answer:
    """Status, body and where it came from, redirects followed."""

    status: int
    text: str
    path: str

    @property
    def json(self) -> Any:
        """The body, read as JSON."""
        return json.loads(self.text)


class Visitor:
    """A browser without a screen: it keeps cookies and fills in forms."""

    def __init__(self, app: Application):
        self._app = app
        self._jar = http.cookiejar.CookieJar()
        # Without a proxy: the application is here.
        self._opener = urllib.request.build_opener(
            urllib.request.HTTPCookieProcessor(self._jar), urllib.request.ProxyHandler({})
        )

    def get(self, path: str) -> Answer:
        """A page."""
        return self._open(urllib.request.Request(self._app.url + path))

    def fill_in(self, path: str, **fields: str) -> Answer:
        """Send a form the way the application's page does."""
        if self._app.example.sends_json:
            body, kind = json.dumps(fields), "application/json"
        else:
            body, kind = urllib.parse.urlencode(fields), "application/x-www-form-urlencoded"
        headers = {"Content-Type": kind}
        cookies = {cookie.name: cookie.value or "" for cookie in self._jar}
        if "csrftoken" in cookies:
            headers["X-CSRFToken"] = cookies["csrftoken"]
        return self._open(urllib.request.Request(self._app.url + path, body.encode(), headers))

    def log_in(self, name: str) -> None:
        """Be *name* from now on."""
        path = "/login" if self._app.example.sends_json else "/"
        self.get("/")
        answer = self.fill_in(path, name=name)
        assert answer.status in (200, 204), answer

    def credentials(self, room: str = "lobby") -> dict[str, str]:
        """What the page connects with: url, token, stream."""
        answer = self.get(f"/rooms/{room}/cable")
        assert answer.status == 200, answer
        return answer.json

    def say(self, text: str, room: str = "lobby") -> Answer:
        """Say it in the room, through the application."""
        return self.fill_in(f"/rooms/{room}/messages", text=text)

    @property
    def cookie(self) -> str:
        """The Cookie header."""
        return "; ".join(f"{cookie.name}={cookie.value}" for cookie in self._jar)

    def call(self, method: str, body: Any, key: str | None, sid: str = "sid-1") -> Answer:
        """Call the application the way the realtime server does."""
        headers = {"Content-Type": "application/json", "x-anycable-meta-sid": sid, "x-anycable-meta-protov": "v1"}
        headers |= {} if key is None else {"Authorization": f"Bearer {key}"}
        request = urllib.request.Request(f"{self._app.rpc_host}/{method}", json.dumps(body).encode(), headers)
        return self._open(request)

    def _open(self, request: urllib.request.Request) -> Answer:
        try:
            with self._opener.open(request, timeout=20) as answer:
                return Answer(answer.status, answer.read().decode(), urllib.parse.urlsplit(answer.url).path)
        except urllib.error.HTTPError as e:
            with e:
                return Answer(e.code, e.read().decode(), urllib.parse.urlsplit(request.full_url).path)


@dataclass
class Application:
    """A running example."""

    example: Example
    port: int
    cable_url: str

    @property
    def url(self) -> str:
        """Where its pages are."""
        return f"http://{HOST}:{self.port}"

    @property
    def rpc_host(self) -> str:
        """Where the realtime server calls it."""
        return f"{self.url}/_anycable"

    def visitor(self, name: str = "") -> Visitor:
        """Somebody with a browser, logged in if there is a name."""
        visitor = Visitor(self)
        if name:
            visitor.log_in(name)
        return visitor


@contextmanager
def running(example: Example, cwd: Path, *, rpc: bool = False) -> Iterator[Application]:
    """The example beside a server, which calls it if *rpc*. Both end with the block; *cwd* takes the logs."""
    app = Application(example, free_port(), "")
    options = [f"--secret={SECRET}", "--presets=broker", "--ignore_config_path"]
    options += [f"--rpc_host={app.rpc_host}"] * rpc
    with Process(*options, cwd=cwd, command=COMMAND, broadcast=False) as cable:
        app.cable_url = cable.url
        with _started(app, cwd / "app.log", publish_url=f"http://{HOST}:{cable.port}/_broadcast"):
            cable.ready()
            yield app
            cable.stop()


@contextmanager
def _started(app: Application, log: Path, publish_url: str) -> Iterator[None]:
    variables = {
        "ANYCABLE_SECRET": SECRET,
        "CABLE_URL": app.cable_url,
        "PUBLISH_URL": publish_url,
        "PYTHONDONTWRITEBYTECODE": "1",
        "NO_PROXY": "*",
    }
    with log.open("wb") as output:
        process = subprocess.Popen(
            [sys.executable, *(word.format(port=app.port) for word in app.example.command)],
            cwd=ROOT / "docs" / "examples" / app.example.name, env=environment(variables),
            stdin=subprocess.DEVNULL, stdout=output, stderr=output, start_new_session=True,
        )  # fmt: skip
    try:
        until(lambda: accepts(app.port) or process.poll() is not None, "the start", within=30)
        assert process.poll() is None, log.read_text("utf-8")
        yield
    finally:
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
