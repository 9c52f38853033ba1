"""The commands in README and guides are run; of those that are not, it is written why."""

from __future__ import annotations

import os
import re
import shlex
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from itertools import takewhile
from pathlib import Path
from typing import NamedTuple

import pytest

from anycable_tx.testing.nats_servers import NatsServer
from anycable_tx.testing.processes import HOST, free_port, server, wait_for
from anycable_tx.testing.redis_servers import RedisServer
from tests.e2e.process import environment
from tests.test_docs import PAGES, ROOT, blocks, ids

#: Commands that are not run here as they are written, by what they begin with, and why.
NOT_RUN = {
    "docker": "there is no Docker where the tests run; test_deployment reads the Dockerfile",
    "pip install": "the tests run where everything is installed; .ci/run begins with it",
    "python -m venv": "the same",
    "npm install": "the same",
    "node client.mjs": "test_docs runs the quick start",
    "cd docs/examples": "the commands that follow are run in there",
    "twistd -ny chat.tac": "test_process_embedding runs it on a port of its own",
    "ANYCABLE_SECRET=a-secret-of-at-least-32-characters python manage.py runserver": "example_apps runs it",
    "ANYCABLE_SECRET=a-secret-of-at-least-32-characters uvicorn chat.app:app": "example_apps runs it",
    "ANYCABLE_SECRET=a-secret-of-at-least-32-characters flask --app chat run": "example_apps runs it",
    "python docs/examples/demo/demo.py": "test_demo runs it on ports of its own",
    "twistd -n anycable --broker=acme": "test_third_party installs that provider and runs it",
    "redis-cli XADD": "tests of the Redis broadcaster add the same",
}
#: Fails as the server says; of an answer without an end it reads the beginning.
CURL = """
set -eu
curl() {
    case " $* " in
    *" -N "*) test -n "$(command curl --fail -sS --noproxy '*' -m 1 "$@" 2>/dev/null)" ;;
    *) command curl --fail-with-body -sS --noproxy '*' "$@" ;;
    esac
}
"""
SECRET = "a-secret-of-at-least-32-characters"


class Command(NamedTuple):
    """A command, and the page it is on."""

    page: Path
    text: str

    @property
    def name(self) -> str:
        return f"{ids(self.page)}: {self.text[:60]}"


def commands() -> Iterator[Command]:
    """Every line of a shell block; lines that go on are one, and so is a command with the text it is given."""
    for page in PAGES:
        for block in blocks(page.read_text("utf-8"), "sh"):
            lines = iter(block.replace("\\\n", " ").splitlines())
            for line in lines:
                text = " ".join(line.partition("  #")[0].split())
                given = re.search(r"<<'(\w+)'$", text)
                if given:
                    text = "\n".join([text, *takewhile(given[1].__ne__, lines), given[1]])
                if text:
                    yield Command(page, text)


def is_server(text: str) -> bool:
    return text.startswith(("anycable-tx ", "twistd -n anycable ")) and not reason(text)


def is_request(text: str) -> bool:
    return text.startswith(("curl ", "key=$(", "for n in"))


def reason(text: str) -> str:
    return next((why for start, why in NOT_RUN.items() if text.startswith(start)), "")


COMMANDS = list(commands())
SERVERS = [command for command in COMMANDS if is_server(command.text)]


def test_every_command_is_run_or_it_is_written_why_not() -> None:
    assert [c.name for c in COMMANDS if not (is_server(c.text) or is_request(c.text) or reason(c.text))] == []
    unused = [start for start in NOT_RUN if not any(c.text.startswith(start) for c in COMMANDS)]
    assert unused == []


def broker_of(text: str) -> str:
    """How the log calls the broker that the command is about."""
    if "--redis_url" in text:
        return "Redis broker"
    if any(option in text for option in ("--nats_servers", "--embed_nats", "--workers")):
        return "NATS broker"
    return "in-memory broker" if "--presets=broker" in text or "conf/" in text else "no-op (legacy) broker"


@contextmanager
def stores(words: list[str]) -> Iterator[list[str]]:
    """The words of a command, with servers of their own where they name a store."""
    with ExitStack() as stack:
        changed = []
        for word in words:
            if word == "--redis_url=redis://localhost:6379":
                word = f"--redis_url=redis://{HOST}:{stack.enter_context(RedisServer()).port}"
            elif word == "--nats_servers=nats://localhost:4222":
                word = f"--nats_servers=nats://{HOST}:{stack.enter_context(NatsServer()).port}"
            elif word.startswith("--api_port="):
                word = f"--api_port={free_port()}"
            changed.append(word)
        yield changed


@pytest.mark.e2e
@pytest.mark.parametrize("text", sorted({command.text for command in SERVERS}))
def test_the_server_starts_as_it_is_written(text: str, tmp_path: Path) -> None:
    program, *words = shlex.split(text)
    assert program in ("anycable-tx", "twistd")
    log = tmp_path / "log"
    port, other = free_port(), free_port()
    with stores(words) as options:
        own = [f"--host={HOST}", f"--port={port}", f"--http_broadcast_port={other}"]
        scripts = Path(sys.executable).parent
        with log.open("wb") as output:
            # Relative names on the pages begin at the checkout; where there are none, nothing of it must be found.
            process = subprocess.Popen(
                [str(scripts / program), *(["--pidfile="] if program == "twistd" else []), *options, *own],
                cwd=ROOT if "conf/" in text else tmp_path,
                env=environment({"PATH": f"{scripts}:{os.environ['PATH']}"}),
                stdin=subprocess.DEVNULL, stdout=output, stderr=output,
            )  # fmt: skip
        try:
            started = f"Handle WebSocket connections at http://{HOST}:{port}/"
            wait_for(lambda: started in log.read_text() or process.poll() is not None, "the start")
            assert process.poll() is None, log.read_text()
            assert f"Using {broker_of(text)}" in log.read_text()
            process.send_signal(signal.SIGTERM)
            assert process.wait(40) == 0, log.read_text()
        finally:
            process.kill()
            process.wait()


@pytest.mark.e2e
@pytest.mark.parametrize("page", sorted({c.page for c in COMMANDS if is_request(c.text)}), ids=lambda page: ids(page))
def test_requests_are_answered_as_they_are_written(page: Path) -> None:
    """Those to 8080 by a server with a secret where the page has a key, the others by one for everybody."""
    api = free_port()
    lines = [command.text for command in COMMANDS if command.page == page and is_request(command.text)]
    with (
        server("--presets=broker", "--public", "--sse", f"--api_port={api}") as public,
        server("--presets=broker", f"--secret={SECRET}", "--http_broadcast_port=0") as keyed,
    ):
        main = keyed if any(line.startswith("key=") for line in lines) else public
        places = {"8080": main.port, "8090": public.broadcast_port, "9000": api}
        script = [CURL, *(re.sub(r"(?<=http://localhost:)\d+", lambda m: str(places[m[0]]), line) for line in lines)]
        done = subprocess.run(
            ["bash", "-c", "\n".join(script)], env={**os.environ, "ANYCABLE_SECRET": SECRET},
            capture_output=True, text=True, timeout=60,
        )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_the_examples_are_started_as_their_guides_say() -> None:
    from tests.e2e.example_apps import DJANGO, FASTAPI, FLASK

    for example in (DJANGO, FASTAPI, FLASK):
        page = ROOT / "docs" / "guide" / f"{example.name}.md"
        [command] = [c.text for c in COMMANDS if c.page == page and c.text.startswith("ANYCABLE_SECRET=")]
        wanted = {"django": "runserver", "fastapi": "chat.app:app", "flask": "--app chat run"}[example.name]
        assert wanted in command
        assert wanted.replace("--app chat", "--app=chat") in " ".join(example.command)
