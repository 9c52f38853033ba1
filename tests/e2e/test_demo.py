"""The demo in two real browsers: what its page claims after a cut, and that it would say so if that were not true."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from anycable_tx.testing.processes import HOST, kept_port, wait_for
from tests.e2e.node import JS, Node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(240)]

DEMO = Path(__file__).resolve().parents[2] / "docs" / "examples" / "demo"


def ports() -> int:
    """The first of four ports that are free."""
    while True:
        first = kept_port()
        try:
            with ExitStack() as stack:
                for port in range(first, first + 4):
                    stack.enter_context(socket.socket()).bind((HOST, port))
        except OSError:
            continue
        return first


@pytest.fixture
def address(official_clients: None, tmp_path: Path) -> Iterator[str]:
    """The demo runs here; at the end it stops, and nothing of it is left."""
    home = tmp_path / "demo"
    shutil.copytree(DEMO, home, ignore=shutil.ignore_patterns("node_modules"))
    (home / "node_modules").symlink_to(JS / "node_modules")
    port = ports()
    command = [sys.executable, str(home / "demo.py"), str(port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=tmp_path) as demo:
        assert demo.stdout is not None
        try:
            assert demo.stdout.readline().startswith(f"Open http://{HOST}:{port} ")
            yield f"http://{HOST}:{port}/"
        finally:
            demo.send_signal(signal.SIGTERM)
            assert demo.wait(30) == 0
    for used in range(port, port + 4):
        with pytest.raises(OSError), socket.create_connection((HOST, used), 1):
            pass


@pytest.fixture
def browsers() -> Iterator[list[Node]]:
    chromium = shutil.which("chromium")
    assert chromium, "This test needs Chromium: install it with `apt-get install -y chromium` (Debian, Ubuntu)."
    with Node(None, "browser.mjs", CHROMIUM=chromium) as one, Node(None, "browser.mjs", CHROMIUM=chromium) as other:
        yield [one, other]


def visit(browser: Node, address: str, name: str) -> None:
    browser.do("visit", url=f"{address}?name={name}", within=60)
    browser.do("wait", selector="#link", text="connected to node one")


def shown(browser: Node, selector: str) -> list[str]:
    texts: list[str] = browser.do("texts", selector=selector)
    return texts


def number(browser: Node, what: str) -> int:
    return int(shown(browser, f"#{what}")[0])


@pytest.mark.statement("CP-90", "CP-100")
def test_a_page_that_is_cut_off_comes_back_on_the_other_node_and_has_missed_nothing(
    address: str, browsers: list[Node]
) -> None:
    ada, grace = browsers
    visit(ada, address, "Ada")
    visit(grace, address, "Grace")
    for browser in browsers:
        wait_for(lambda browser=browser: len(shown(browser, "#who li")) == 2, "both to be present")
    wait_for(lambda: number(ada, "received") > 10, "numbers")
    ada.do("click", selector="#cut")
    ada.do("wait", selector="#link", text="offline")
    before = number(ada, "received")
    grace.do("fill", selector="#text", text="Said meanwhile")
    grace.do("click", selector="form button")
    grace.do("wait", selector="#chat li", text="Said meanwhile")
    assert shown(grace, "#who li") == ["Ada", "Grace (you)"]
    assert number(ada, "received") == before
    assert shown(ada, "#chat li") == []
    ada.do("wait", selector="#log li", text="back, session restored: node two")
    ada.do("wait", selector="#log li", text="caught up with")
    ada.do("wait", selector="#chat li", text="Said meanwhile")
    after = number(ada, "received")
    assert after > before + 15
    wait_for(lambda: number(ada, "received") > after + 10, "numbers on the other node")
    for browser in browsers:
        assert [number(browser, what) for what in ("missed", "doubled")] == [0, 0]
        assert len(shown(browser, "#chat li")) == 1
        assert not browser.find(event="failed")
    assert sorted(shown(ada, "#who li")) == ["Ada (you)", "Grace"]
    assert sorted(shown(grace, "#who li")) == ["Ada", "Grace (you)"]
    assert shown(grace, "#log li")[-1].endswith("connected: node one")


def test_the_page_shows_what_is_missed_and_what_is_doubled(address: str, browsers: list[Node]) -> None:
    page = browsers[0]
    page.do("tamper", stream="counter", withhold=5, double=8)
    visit(page, address, "Ada")
    wait_for(lambda: number(page, "received") > 12, "numbers")
    assert [number(page, what) for what in ("missed", "doubled")] == [1, 1]
    assert page.do("count", selector="#strip .wrong") == 2
