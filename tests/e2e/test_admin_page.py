"""The admin page in a real browser."""

from __future__ import annotations

import shutil
from collections.abc import Iterator

import pytest

from anycable_tx.testing.processes import Server, free_port, server, wait_for
from tests.e2e.node import Node

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

KEY = "k3y-of-the-page"
#: What would be done by a page that takes names for markup, for script, or for the end of one of its own texts.
HOSTILE = (
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "\"'><svg onload=alert(3)>",
    "javascript:alert(4)",
    "${alert(5)}{{alert(6)}}",
)
#: Right to left, and a letter that is not seen.
HIDING = "abc\u202edef\u200bghi"


@pytest.fixture
def port() -> int:
    return free_port()


@pytest.fixture
def cable(port: int) -> Iterator[Server]:
    with server("--presets=broker", "--public", "--admin", f"--admin_key={KEY}", f"--admin_port={port}") as running:
        yield running


@pytest.fixture
def browser() -> Iterator[Node]:
    chromium = shutil.which("chromium")
    assert chromium, "This test needs Chromium: install it with `apt-get install -y chromium` (Debian, Ubuntu)."
    with Node(None, "browser.mjs", CHROMIUM=chromium) as process:
        yield process


def open_page(browser: Node, port: int) -> None:
    browser.do("visit", url=f"http://127.0.0.1:{port}/admin", within=60)
    browser.do("fill", selector="#key", text=KEY)
    browser.do("click", selector="#door button")
    browser.do("wait", selector="#state", text="ready")


def shown(browser: Node, selector: str) -> list[str]:
    texts: list[str] = browser.do("texts", selector=selector)
    return texts


def test_the_page_asks_for_the_key_and_shows_clients_as_they_come_and_go(
    official_clients: None, cable: Server, node: Node, browser: Node, port: int
) -> None:
    browser.do("visit", url=f"http://127.0.0.1:{port}/admin", within=60)
    assert browser.do("count", selector="#room:not([hidden])") == 0
    browser.do("fill", selector="#key", text="wrong")
    browser.do("click", selector="#door button")
    browser.do("wait", selector="#refused", text="This is not the admin key.")
    assert [e["reason"].split(":")[0] for e in browser.find(event="complaint")] == ["Failed to load resource"]
    open_page(browser, port)
    browser.do("wait", selector="#clients .empty", text="nobody")
    node.open("ada", cable.url)
    node.do("subscribe", client="ada", stream="chat")
    browser.do("wait", selector="#clients td", text='"stream_name":"chat"')
    browser.do("wait", selector="#streams td", text="chat")
    with cable.publisher() as publisher:
        publisher.publish("chat")
    wait_for(lambda: shown(browser, "#streams td")[3:4] == ["1"], "the offset")
    browser.do("click", selector="#clients td button")
    browser.do("wait", selector="#ask .code", text='{"sid":')
    browser.do("click", selector="#ask .do")
    browser.do("wait", selector="#clients .empty", text="nobody")
    node.wait_for(event="closed", client="ada")
    assert not browser.find(event="failed")
    assert len(browser.find(event="complaint")) == 1
    assert KEY not in cable.log


def test_names_are_text_whatever_they_say(
    official_clients: None, cable: Server, node: Node, browser: Node, port: int
) -> None:
    node.open("eve", cable.url)
    for name in (*HOSTILE, HIDING):
        node.do("subscribe", client="eve", stream=name)
    open_page(browser, port)
    wait_for(lambda: len(shown(browser, "#streams tr td:first-child")) == len(HOSTILE) + 1, "the streams")
    names = shown(browser, "#streams tr td:first-child")
    assert names[::-1] == [*HOSTILE, r"abc\u202edef\u200bghi"]
    assert browser.do("count", selector="#room img, #room script, #room td svg, #room a") == 0
    browser.do("click", selector="#clients td button")
    browser.do("wait", selector="#ask .code", text="sid")
    browser.do("click", selector="#ask .no")
    assert not browser.find(event="failed")
    assert not browser.find(event="complaint")


def test_a_page_comes_back_by_itself_after_a_restart(
    official_clients: None, cable: Server, node: Node, browser: Node, port: int
) -> None:
    open_page(browser, port)
    before = shown(browser, "#pid")
    cable.stop()
    browser.do("wait", selector="#state", text="not connected")
    cable.start()
    browser.do("wait", selector="#state.good", text="ready")
    wait_for(lambda: shown(browser, "#pid") != before, "the new process")
    assert not browser.find(event="failed")
