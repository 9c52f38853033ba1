"""anycable_tx.nats.child and bound: how children live, and what becomes of what they say"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Iterator
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest
from twisted.logger import LogLevel, globalLogPublisher

from anycable_tx.nats import bound
from anycable_tx.nats.child import Child, understood
from tests.rpc.http_support import RealReactor


@pytest.fixture
def logged() -> Iterator[list[tuple[str, str]]]:
    """The level and the text of what children said."""
    lines: list[tuple[str, str]] = []

    def observe(event: dict[str, Any]) -> None:
        if event.get("attrs", {}).get("service") == "nats":
            assert event["attrs"]["context"] == "enats"
            lines.append((event["log_level"].name, event["text"]))

    globalLogPublisher.addObserver(observe)
    yield lines
    globalLogPublisher.removeObserver(observe)


def run(reactor: RealReactor, code: str, lock: str = "", **options: Any) -> Child:
    """A child that is Python code."""
    child = Child(reactor, **options)
    child.run([sys.executable, "-I", "-S", "-c", code], b"configuration", lock)
    return child


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("[12] 2026/11/30 10:46:27.062863 [INF] Server is ready", ("INF", "Server is ready")),
        ("[12] 2026/11/30 10:46:27.062863 [INF]", ("INF", "")),
        ("[12] 2026/11/30 10:46:27.062863 [TRC] 1:1 - cid:5 - <<- [PING]", ("TRC", "1:1 - cid:5 - <<- [PING]")),
        ("panic: runtime error", ("", "panic: runtime error")),
        ("", ("", "")),
    ],
)  # fmt: skip
def test_a_line_is_a_level_and_a_text(line: str, expected: tuple[str, str]) -> None:
    assert understood(line) == expected


SAYS = """
import sys
for line in {lines!r}:
    print(line, file=sys.stderr, flush=True)
"""


@pytest.mark.parametrize(("chatter", "expected"), [(LogLevel.debug, "debug"), (LogLevel.info, "info")])
def test_what_it_says_is_logged_by_its_level_and_without_secrets(
    reactor: RealReactor, logged: list[tuple[str, str]], chatter: Any, expected: str
) -> None:
    at = "[1] 2026/11/30 10:46:27"
    lines = [
        f"{at} [INF] a",
        f"{at} [DBG] b",
        f"{at} [WRN] c hush",
        f"{at} [ERR] d",
        f"{at} [FTL] e",
        f"{at} [INF] ",
        f"{at} [WRN] Healthcheck failed: we asked",
        "f",
    ]
    child = run(reactor, SAYS.format(lines=lines), secrets=["hush"], chatter=chatter)
    reactor.result(child.ended())
    told = [(expected, "a"), (expected, "b"), ("warn", "c ***"), ("error", "d"), ("error", "e")]
    told += [(expected, "Healthcheck failed: we asked"), ("warn", "f")]
    assert logged == told
    assert child.complaint == "f"


def test_what_it_says_of_itself_is_known(reactor: RealReactor) -> None:
    at = "[1] 2026/11/30 10:46:27"
    lines = [
        f"{at} [INF] Starting http monitor on 127.0.0.1:4711",
        f"{at} [INF] Server is ready",
        f'{at} [ERR] 127.0.0.1:1 - rid:14 - Remote server has a duplicate name: "same"',
    ]
    child = run(reactor, SAYS.format(lines=lines))
    assert (child.monitor_port, child.accepts, child.duplicate) == (0, False, False)
    reactor.result(child.ended())
    assert (child.monitor_port, child.accepts, child.duplicate) == (4711, True, True)


def test_a_line_without_an_end_is_not_kept(reactor: RealReactor, logged: list[tuple[str, str]]) -> None:
    child = run(reactor, "print('x' * 5_000_000, flush=True); print('y')")
    reactor.result(child.ended())
    assert [len(text) for _, text in logged] == [2000, 1]
    assert len(child._rest) <= 2000


@pytest.mark.parametrize(
    ("code", "end"),
    [
        ("", "it ended"),
        ("raise SystemExit(7)", "it ended with status 7"),
        ("import os; os.kill(os.getpid(), 9)", "it was ended by signal 9"),
    ],
)
def test_an_end_is_noticed_without_a_signal_to_this_process(reactor: RealReactor, code: str, end: str) -> None:
    child = run(reactor, code)
    assert child.end == ""
    reactor.result(child.ended())
    assert child.end == end
    child.signal(SIGKILL)  # nobody is hit
    assert reactor.result(child.ends_within(1))
    reactor.until(reactor.at_rest)


def test_it_reads_what_it_is_given(reactor: RealReactor) -> None:
    child = run(reactor, "assert open('/dev/stdin').read() == 'configuration'")
    reactor.result(child.ended())
    assert child.end == "it ended"


def test_one_that_goes_on_is_waited_for_only_so_long(reactor: RealReactor) -> None:
    child = run(reactor, "import time; time.sleep(60)")
    assert not reactor.result(child.ends_within(0.1))
    child.signal(SIGKILL)
    assert reactor.result(child.ends_within(5))
    assert child.end == "it was ended by signal 9"


def test_what_cannot_be_run_has_ended(reactor: RealReactor, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*args: object, **options: object) -> None:
        raise OSError(11, "Resource temporarily unavailable")

    monkeypatch.setattr(reactor, "spawnProcess", refuse)
    child = run(reactor, "")
    assert child.end == "it cannot be run: Resource temporarily unavailable"
    child.signal(SIGTERM)
    reactor.result(child.ended())


def test_variables_that_are_for_us_are_not_for_it(reactor: RealReactor, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYCABLE_SECRET", "s")
    monkeypatch.setenv("OTHER", "o")
    child = run(reactor, "import os; assert 'OTHER' in os.environ and 'ANYCABLE_SECRET' not in os.environ")
    reactor.result(child.ended())
    assert child.end == "it ended"


def test_a_lock_is_held_for_as_long_as_it_runs(reactor: RealReactor, tmp_path: Any) -> None:
    lock = str(tmp_path / "lock")
    first = run(reactor, "print('[1] d t [INF] Server is ready', flush=True); import time; time.sleep(60)", lock)
    reactor.until(lambda: first.accepts)
    second = run(reactor, "", lock)
    reactor.result(second.ended())
    assert second.end == f"it ended with status {bound.TAKEN}"
    assert second.complaint == f"{lock} is locked: another server uses the directory"
    first.signal(SIGKILL)
    reactor.result(first.ended())
    third = run(reactor, "", lock)
    reactor.result(third.ended())
    assert third.end == "it ended"


def test_whose_parent_is_gone_already_does_not_begin() -> None:
    done = subprocess.run(
        [sys.executable, "-I", "-S", bound.__file__, "1", "", sys.executable, "-c", "print('began')"],
        capture_output=True,
    )
    assert (done.returncode, done.stdout) == (1, b"")
