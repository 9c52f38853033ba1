"""The official JavaScript clients in one Node process, driven by JSON lines."""

from __future__ import annotations

import itertools
import json
import os
import queue
import shutil
import subprocess
import threading
import time
from pathlib import Path
from types import TracebackType
from typing import Any

from anycable_tx.testing.checker import EventLog

JS = Path(__file__).parent / "js"
EXT = "actioncable-v1-ext-json"
BASE = "actioncable-v1-json"


def install() -> None:
    """``npm ci``, if that was not done. Raises AssertionError with what to install when Node is missing."""
    assert shutil.which("node"), "Node.js 18 or later is needed for the official clients: install the package nodejs"
    if not (JS / "node_modules" / ".package-lock.json").exists():
        assert shutil.which("npm"), "npm is needed to install the official clients: install the package npm"
        subprocess.run(["npm", "ci", "--no-audit", "--no-fund"], cwd=JS, check=True, capture_output=True)


class NodeFailed(AssertionError):
    """An order was answered with an error, or not at all."""


class Node:
    """A Node process with any number of clients. A context manager.

    ``events`` are all their events in the order of arrival; with *log* the checker gets them too.
    """

    def __init__(self, log: EventLog | None = None, script: str = "client.mjs", **env: str):
        self.events: list[dict[str, Any]] = []
        self._log = log
        self._numbers = itertools.count()
        self._answers: dict[int, queue.SimpleQueue[dict[str, Any]]] = {}
        self._changed = threading.Condition()
        self._base: set[str] = set()
        self._rails: set[str] = set()
        self._subscriptions: set[tuple[str, str]] = set()
        self._process = subprocess.Popen(
            ["node", script],
            cwd=JS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, **env},
        )
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def __enter__(self) -> Node:
        return self

    def __exit__(self, kind: type[BaseException] | None, e: BaseException | None, tb: TracebackType | None) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        finally:
            self._process.kill()
            self._process.wait()
            self._reader.join(10)
            assert self._process.stdout is not None
            self._process.stdout.close()

    def open(
        self, client: str, url: str, protocol: str = EXT, library: str = "core", reconnect: int = 100, **more: Any
    ) -> None:
        """Create a client and connect it; *reconnect*: about how many milliseconds it waits before it reconnects."""
        if protocol == BASE or library == "rails":
            self._base.add(client)
        if library == "rails":
            self._rails.add(client)
        self.do("open", client=client, url=url, protocol=protocol, library=library, reconnect=reconnect, **more)

    def do(self, name: str, within: float = 20.0, **order: Any) -> Any:
        """Give an order and wait for its answer. Raises NodeFailed."""
        number = next(self._numbers)
        answer = self._answers[number] = queue.SimpleQueue()
        assert self._process.stdin is not None
        self._process.stdin.write(json.dumps({"do": name, "number": number, **order}) + "\n")
        self._process.stdin.flush()
        try:
            said = answer.get(timeout=within)
        except queue.Empty:
            raise NodeFailed(f"no answer to {name} {order} within {within} s") from None
        if "error" in said:
            raise NodeFailed(f"{name} {order}: {said['error']} {said.get('reason') or ''}")
        return said.get("value")

    def find(self, **fields: Any) -> list[dict[str, Any]]:
        """The events with these fields so far."""
        return [e for e in list(self.events) if all(e.get(key) == value for key, value in fields.items())]

    def wait_for(self, count: int = 1, within: float = 15.0, **fields: Any) -> list[dict[str, Any]]:
        """Wait until there are *count* events with these fields; answers them. Raises NodeFailed."""
        deadline = time.monotonic() + within
        with self._changed:
            while len(found := self.find(**fields)) < count:
                if not self._changed.wait(max(0.0, deadline - time.monotonic())):
                    raise NodeFailed(
                        f"{len(found)} of {count} events {fields} within {within} s; {self.events[-20:]}"
                    )
        return found

    def messages(self, client: str, stream: str) -> list[Any]:
        """What the client's application was shown of a stream, in order."""
        return [e["message"] for e in self.find(event="received", client=client, stream=stream)]

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            event = json.loads(line)
            with self._changed:
                if "answer" in event:
                    self._answers.pop(event["answer"]).put(event)
                else:
                    self.events.append(event)
                    if self._log is not None:
                        self._tell(self._log, event)
                self._changed.notify_all()

    def _tell(self, log: EventLog, event: dict[str, Any]) -> None:
        """Write the event down in the words of the checker."""
        client, stream = event["client"], event.get("stream", "")
        about = {key: event[key] for key in ("client", "identifier", "connection", "stream") if key in event}
        match event["event"]:
            case "connected":
                log.record("connected", **about, restored=event["restored"])
            case "subscribed":
                self._subscribed(log, about)
            case "interrupted":
                self._subscriptions.discard((client, stream))
                if client in self._rails:
                    log.record("cut", **about, connection=1)
            case "received":
                self._subscribed(log, about)  # what came with the confirmation is shown before the news of it
                position = {key: event[key] for key in ("epoch", "offset") if key in event}
                log.record("received", **about, **position, id=event["message"]["id"], how="live")
            case "history_not_found":
                log.record("refused", **about)
            case "cut":
                log.record("cut", **about)
            case "ended":
                self._subscriptions.discard((client, stream))
                log.record("unsubscribing", **about)
            case "closed":
                log.record("gone", **about)

    def _subscribed(self, log: EventLog, about: dict[str, Any]) -> None:
        key = (about["client"], about["stream"])
        if key not in self._subscriptions:
            self._subscriptions.add(key)
            if about["client"] in self._rails:
                log.record("connected", client=about["client"], connection=1, restored=False)
            log.record("subscribed", **about, **{"from": None if about["client"] in self._base else {}})
