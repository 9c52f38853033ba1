"""Server-sent events and the clients there are: a browser's EventSource, curl, an HTTP library."""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import signal
import subprocess
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from pathlib import Path

import pytest

from anycable_tx.testing.checker import EventLog
from anycable_tx.testing.processes import HOST, ProxyProcess, Server, server
from anycable_tx.testing.redis_servers import RedisServer
from tests.e2e.conftest import RESUMABLE
from tests.e2e.crowd import at_rest, cut
from tests.e2e.cutting_run import Plan, Traffic
from tests.e2e.event_source import EventSource
from tests.e2e.node import Node
from tests.e2e.process import Process
from tests.e2e.test_process_certificate import certify

pytestmark = pytest.mark.e2e
GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide" / "sse.md"


@pytest.fixture
def events() -> Iterator[Server]:
    """A server of events with history, open to everybody."""
    with server(*RESUMABLE, "--sse") as running:
        yield running


def curl(*arguments: str) -> AbstractContextManager[subprocess.Popen[str]]:
    """curl, reading."""
    return ended(subprocess.Popen(["curl", "-sN", *arguments], stdout=subprocess.PIPE, text=True))


@contextmanager
def ended(process: subprocess.Popen[str]) -> Iterator[subprocess.Popen[str]]:
    """A process that is over when the block is."""
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def block(process: subprocess.Popen[str]) -> list[str]:
    """The lines of the next event."""
    assert process.stdout is not None
    lines = []
    while line := process.stdout.readline().rstrip("\n"):
        lines.append(line)
    return lines


def masked(lines: list[str]) -> list[str]:
    """An event without what is another one each time."""
    return [re.sub(r'"sid":"[^"]+"|/\w+/', "", line) for line in lines]


@pytest.mark.timeout(180)
@pytest.mark.parametrize("heard", [0, 2], ids=["before its first message", "between two messages"])
@pytest.mark.statement("HE-25", "HE-24")
def test_a_browser_that_is_cut_comes_back_by_itself_and_misses_nothing(
    official_clients: None, events: Server, log: EventLog, heard: int
) -> None:
    chromium = shutil.which("chromium")
    assert chromium, "This test needs Chromium: install it with `apt-get install -y chromium` (Debian, Ubuntu)."
    with (
        ProxyProcess(events.port) as proxy,
        events.publisher(log=log) as publisher,
        Node(log, "browser.mjs", CHROMIUM=chromium) as browser,
    ):
        url = f"http://{HOST}:{proxy.port}/events?stream=a/1"
        browser.do("open", url=url, stream="a/1", file="events.html", within=60)
        browser.wait_for(event="subscribed", within=30)
        sent = [publisher.publish("a/1") for _ in range(heard)]
        browser.wait_for(heard, event="received")
        proxy.do("refuse")
        proxy.do("cut")
        browser.wait_for(event="cut")
        sent += [publisher.publish("a/1") for _ in range(5)]
        proxy.do("accept")
        browser.wait_for(event="confirm_history", within=60)
        sent.append(publisher.publish("a/1"))
        browser.wait_for(heard + 6, event="received")
        assert browser.do("shown") == sent
        assert not browser.find(event="failed")
    report = log.check()
    assert report.ok, str(report)
    assert report.counts["cuts"] == 1


@pytest.mark.timeout(180)
@pytest.mark.statement("HE-32")
def test_a_browser_comes_back_to_a_server_that_was_restarted(
    official_clients: None, events: Server, log: EventLog
) -> None:
    chromium = shutil.which("chromium")
    assert chromium, "This test needs Chromium: install it with `apt-get install -y chromium` (Debian, Ubuntu)."
    with Node(log, "browser.mjs", CHROMIUM=chromium) as browser, events.publisher(log=log) as publisher:
        url = f"http://{HOST}:{events.port}/events?stream=a"
        browser.do("open", url=url, stream="a", file="events.html", within=60)
        browser.wait_for(event="subscribed", within=30)
        sent = [publisher.publish("a")]
        browser.wait_for(event="received")
        events.restart()
        browser.wait_for(event="disconnect")
        sent.append(publisher.publish("a"))
        browser.wait_for(2, event="subscribed", within=60)
        browser.wait_for(2, event="received")
        assert browser.do("shown") == sent
        assert not browser.find(event="failed")
    assert log.check().ok


@pytest.mark.statement("HE-19", "HE-25")
def test_curl_reads_a_stream_and_goes_on_where_it_was(events: Server) -> None:
    url = f"http://{HOST}:{events.port}/events?stream=chat"
    with events.publisher() as publisher:
        with curl(url) as reading:
            assert block(reading)[0] == "event: welcome"
            assert block(reading)[0] == "event: confirm_subscription"
            publisher.post({"stream": "chat", "data": '"hello"'})
            data, id = block(reading)
            assert (data, id[:6]) == ("data: hello", "id: 1/")
        publisher.post({"stream": "chat", "data": '{"n":2}'})
        with curl(url, "-H", f"Last-Event-ID: {id[4:]}") as reading:
            found = [block(reading) for _ in range(4)]
        assert found[2] == ['data: {"n":2}', id.replace("1/", "2/", 1)]
        assert found[3][0] == "event: confirm_history"


def test_the_commands_of_the_guide_show_what_it_says() -> None:
    text = GUIDE.read_text("utf-8")
    start, listen, publish, come_back, post = re.findall(r"^```sh\n(.*?)^```", text, re.M | re.S)
    shown = re.findall(r"^```text\n(.*?)^```", text, re.M | re.S)[0].strip().split("\n\n")

    def run(command: str, id: str = "") -> subprocess.Popen[str]:
        for port, actual in (("8080", target.port), ("8090", target.broadcast_port)):
            command = command.replace(f"localhost:{port}", f"{HOST}:{actual}")
        command = command.replace("1/fNg4WkXB/chat", id).replace("curl -N", "exec curl -sN")
        return subprocess.Popen(["bash", "-c", command], stdout=subprocess.PIPE, text=True)

    with server(*start.partition(" anycable ")[2].split()) as target:
        with ended(run(listen)) as reading:
            found = [block(reading) for _ in range(2)]
            with run(publish) as publishing:
                assert publishing.wait(10) == 0
            found.append(block(reading))
        assert [masked(lines) for lines in found] == [masked(event.split("\n")) for event in shown]
        with ended(run(come_back, found[2][1][4:])) as reading:
            assert [block(reading)[0] for _ in range(3)][2] == "event: confirm_history"
        with ended(run(post)) as reading:
            kinds = [block(reading)[0].removeprefix("event: ") for _ in range(5)]
        assert kinds == ["welcome", *["confirm_subscription"] * 2, "presence", "confirm_history"]


@pytest.mark.statement("HE-33", "HE-32")
def test_curl_posts_its_subscriptions_over_tls_and_reads_the_end(tmp_path: Path) -> None:
    certify(tmp_path, HOST)
    tls = (f"--ssl_cert={tmp_path / 'cert.pem'}", f"--ssl_key={tmp_path / 'key.pem'}")
    identifiers = [json.dumps({"channel": "$pubsub", "stream_name": name}) for name in "ab"]
    (tmp_path / "body").write_text("".join(json.dumps({"identifier": name}) + "\n" for name in identifiers))
    with (
        Process("--presets=broker", "--public", "--sse", *tls, cwd=tmp_path) as target,
        curl(
            "-k", "--data-binary", f"@{tmp_path / 'body'}", f"https://{HOST}:{target.ready().port}/events"
        ) as reading,
    ):
        kinds = [block(reading)[0] for _ in range(3)]
        assert kinds == ["event: welcome", "event: confirm_subscription", "event: confirm_subscription"]
        publication = json.dumps({"stream": "b", "data": '"hello"'})
        url = f"https://{HOST}:{target.broadcast_port}/_broadcast"
        subprocess.run(["curl", "-sfk", "-d", publication, url], check=True)
        message = json.loads(block(reading)[0].removeprefix("data: "))
        assert (message["identifier"], message["message"]) == (identifiers[1], "hello")
        target.send()
        goodbye = [lines for lines in iter(lambda: block(reading), []) if lines[0] != "event: ping"]
        assert [lines[0] for lines in goodbye] == ["event: disconnect"]
        assert reading.wait(10) == 0  # the response was complete
        target.wait()


def test_a_client_that_stalls_is_let_go_and_the_rest_of_it_comes_later(events: Server) -> None:
    url = f"http://{HOST}:{events.port}/events?stream=big"
    with events.publisher() as publisher, curl(url) as reading:
        assert block(reading)[0] == "event: welcome"
        id = block(reading)[-1][4:]
        reading.send_signal(signal.SIGSTOP)
        text = json.dumps("x" * 100_000)
        for _ in range(150):
            assert publisher.post({"stream": "big", "data": text}) == 201
        time.sleep(3)
        reading.send_signal(signal.SIGCONT)
        heard = 0
        while lines := block(reading):
            if lines[0].startswith("data: x"):
                heard, id = heard + 1, lines[-1][4:]
        assert heard < 150
        with curl(url, "-H", f"Last-Event-ID: {id}") as rest:
            types = [block(rest)[0][:13] for _ in range(2 + 150 - heard + 1)]
        assert types[2:-1] == ["data: xxxxxxx"] * (150 - heard)
        assert types[-1] == "event: confir"


async def _drive(plan: Plan, target: Server, proxies: list[ProxyProcess], log: EventLog) -> None:
    urls = [f"http://{HOST}:{proxy.port}/events" for proxy in proxies]
    clients = [
        EventSource(urls, f"stream-{n % plan.streams}", name=f"client-{n}", log=log) for n in range(plan.clients)
    ]
    await asyncio.gather(*(client.subscribed.wait() for client in clients))
    traffic = Traffic(target.publisher(log=log), plan)
    traffic.start()
    try:
        await cut(plan, proxies, time.monotonic() + plan.seconds)
    finally:
        await asyncio.to_thread(traffic.stop)
    await asyncio.gather(*(client.subscribed.wait() for client in clients))
    await at_rest(log, 20)
    await asyncio.gather(*(client.close() for client in clients))


def _judge(plan: Plan, nodes: list[Server], log: EventLog) -> None:
    with ExitStack() as stack:
        proxies = [stack.enter_context(ProxyProcess(node.port)) for node in nodes]
        asyncio.run(_drive(plan, nodes[0], proxies, log))
    report = log.check()
    assert report.ok, str(report)
    assert report.counts["cuts"] >= plan.clients * 3
    assert report.counts["replayed"] > 0
    assert report.counts["refusals"] == 0


@pytest.mark.statement("HE-25", "P1", "P2", "P3", "P4")
def test_many_clients_that_are_cut_again_and_again_miss_nothing(events: Server, log: EventLog) -> None:
    _judge(Plan(clients=40, seconds=10, rate=50, streams=10), [events], log)


@pytest.mark.statement("HE-25", "P3")
def test_they_come_back_to_any_node_that_shares_the_broker(log: EventLog) -> None:
    with RedisServer() as redis, ExitStack() as stack:
        options = ("--presets=broker", "--public", "--sse", "--history_limit=5000", f"--redis_url={redis.url}")
        nodes = [stack.enter_context(server(*options)) for _ in range(2)]
        _judge(Plan(clients=30, seconds=8, rate=40, streams=10), nodes, log)
