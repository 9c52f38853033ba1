"""The official client @anycable/web on a page in a real browser."""

from __future__ import annotations

import shutil

import pytest

from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.processes import ProxyProcess, Publisher, Server
from tests.e2e.node import Node

pytestmark = pytest.mark.e2e


@pytest.mark.timeout(180)
@pytest.mark.statement("CP-90", "CP-100")
def test_a_page_shows_what_it_missed_during_a_cut_once_in_order(
    official_clients: None, cable: Server, proxy: ProxyProcess, publisher: Publisher, log: EventLog
) -> None:
    chromium = shutil.which("chromium")
    assert chromium, "This test needs Chromium: install it with `apt-get install -y chromium` (Debian, Ubuntu)."
    with Node(log, "browser.mjs", CHROMIUM=chromium) as browser:
        browser.do("open", url=proxy.url(), stream="a", within=60)
        browser.wait_for(event="subscribed", within=30)
        sent = [publisher.publish("a") for _ in range(2)]
        browser.wait_for(2, event="received")
        proxy.do("refuse")
        proxy.do("cut")
        browser.wait_for(event="cut")
        sent += [publisher.publish("a") for _ in range(5)]
        proxy.do("accept")
        assert browser.wait_for(2, event="connected", within=30)[1]["restored"]
        browser.wait_for(7, event="received")
        sent.append(publisher.publish("a"))
        browser.wait_for(8, event="received")
        assert browser.do("shown") == sent
        assert not browser.find(event="failed")
    report = log.check()
    assert report.ok, str(report)
    assert report.counts["resumes"] == 1
