"""Several workers behind one port: everybody is served, what ends is replaced, and nothing is left behind."""

from __future__ import annotations

import asyncio
import os
import re
import signal
import socket
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from anycable_tx.testing.client import EXT, CableClient
from anycable_tx.testing.processes import free_port, kept_port
from anycable_tx.testing.redis_servers import RedisServer
from tests.e2e.cluster_run import Plan, clean, run
from tests.e2e.cluster_workers import exists
from tests.e2e.process import (
    COMMAND,
    HOST,
    RIGGED,
    STAMP,
    TWISTD,
    Process,
    accepts,
    adopting,
    ended,
    get,
    post,
    status_of,
    until,
)
from tests.e2e.test_process_certificate import Client, certify

pytestmark = pytest.mark.e2e

OPEN = ("--public", "--ignore_config_path", "--workers=2", "--node_id=me")


@pytest.fixture(scope="module")
def redis() -> Iterator[tuple[str, ...]]:
    """The options of workers that share a Redis."""
    with RedisServer() as running:
        yield (*OPEN, "--presets=broker", "--broadcast_adapter=http", f"--redis_url=redis://{HOST}:{running.port}")


def nats() -> tuple[str, ...]:
    """The options of workers that share what they embed."""
    return (*OPEN, "--presets=broker", f"--enats_addr=nats://{HOST}:{kept_port()}")


def workers(log: str) -> dict[str, int]:
    """The process of each worker that lives, by its name, from what was logged."""
    found = re.findall(r"Starting AnyCable .*\(pid: (\d+),.* nodeid=(me-\d)\n", log)
    return {name: int(pid) for pid, name in found if exists(int(pid))}


def ready(it: Process) -> dict[str, int]:
    """Wait until all workers serve."""
    until(lambda: "Workers are ready" in it.out or not it.running, "the start", within=30)
    assert it.running, it.out + it.err
    return workers(it.out)


async def connected(it: Process, count: int) -> list[CableClient]:
    """So many clients, subscribed to the stream ``s``."""
    made = [CableClient(it.url, name=f"client-{n}", protocol=EXT) for n in range(count)]
    for client in made:
        await client.connect()
        await client.subscribe(stream="s")
    return made


async def hear(made: list[CableClient], expected: list[int]) -> None:
    """All have exactly these messages, in their order."""
    for client in made:
        [identifier] = {f["identifier"] for f in client.frames if "identifier" in f}
        assert await client.messages(identifier, len(expected)) == expected


def established(it: Process) -> Counter[int]:
    """How many connections of the main port each worker has."""
    inodes = set()
    for line in Path("/proc/net/tcp").read_text().splitlines()[1:]:
        words = line.split()
        if words[1].endswith(f":{it.port:04X}") and words[3] == "01":
            inodes.add(f"socket:[{words[9]}]")
    found: Counter[int] = Counter()
    for pid in workers(it.out).values():
        for descriptor in Path(f"/proc/{pid}/fd").iterdir():
            with suppress(OSError):
                found[pid] += os.readlink(descriptor) in inodes
    return found


# -- serving


@pytest.mark.parametrize("command", ["twistd", "anycable-tx"])
def test_both_workers_get_clients_and_publications_of_either_reach_all(command: str, tmp_path: Path) -> None:
    with Process(*nats(), cwd=tmp_path, command=COMMAND if command == "anycable-tx" else ()) as it:
        assert set(ready(it)) == {"me-1", "me-2"}
        assert get(it.port, "/ready") == (200, "ready\n")
        assert get(it.port, "/health") == (200, "healthy\n")

        async def run() -> None:
            made = await connected(it, 60)
            counts = established(it)
            assert sum(counts.values()) == 60
            assert len([count for count in counts.values() if count]) == 2
            for n in range(20):  # each on a connection of its own, which either takes
                assert post(it.broadcast_port, f'{{"stream":"s","data":"{n}"}}') == 201
            await hear(made, list(range(20)))
            await asyncio.to_thread(it.stop)
            for client in made:
                await client.ended(5)
                assert (client.disconnect, client.close_code) == (None, 1001)

        asyncio.run(run())
        assert all(STAMP.match(line) for line in it.out.splitlines())
        assert not accepts(it.port)


def test_nobody_is_accepted_before_a_worker_is_ready(tmp_path: Path) -> None:
    options = (*OPEN, "--broker=none", "--pubsub=rigged_hanging")
    with Process(*options, cwd=tmp_path, env=RIGGED) as it:
        until(lambda: it.out.count("Using no-op") == 2, "the start")
        assert not accepts(it.port)
        it.stop(within=5)
        assert " ERR " not in it.out


def test_workers_restarted_with_their_nats_know_their_clients(tmp_path: Path) -> None:
    options = nats()

    async def run() -> None:
        with Process(*options, cwd=tmp_path) as it:
            ready(it)
            made = await connected(it, 20)
            await asyncio.to_thread(it.stop)
        with Process(*options, cwd=tmp_path) as again:
            ready(again)
            assert post(again.broadcast_port, '{"stream":"s","data":"7"}') == 201
            for client in made:
                client.url = again.url
                assert await client.resume()
            await hear(made, [7])
            for client in made:
                await client.close()
            await asyncio.to_thread(again.stop)

    asyncio.run(run())


# -- what ends is replaced


def test_a_worker_that_is_killed_is_replaced(tmp_path: Path, redis: tuple[str, ...]) -> None:
    metrics = kept_port()
    with Process(*redis, "--metrics_http=/metrics", f"--metrics_port={metrics}", cwd=tmp_path) as it:
        before = ready(it)
        os.kill(before["me-1"], signal.SIGKILL)
        until(lambda: "a worker is ready" in it.out, "the replacement")
        restarts = 'anycable_tx_worker_restarts_total{reason="SIGKILL",worker="1"} 1.0'
        assert restarts in get(metrics, "/metrics")[1].splitlines()
        after = workers(it.out)
        assert after["me-2"] == before["me-2"]
        assert after["me-1"] != before["me-1"]
        assert " ERR a worker ended and is replaced nodeid=me context=workers worker=me-1 how=SIGKILL\n" in it.out
        it.stop()


def test_a_worker_that_is_told_to_end_drains_and_is_replaced(tmp_path: Path, redis: tuple[str, ...]) -> None:
    with Process(*redis, cwd=tmp_path) as it:
        before = ready(it)

        async def run() -> None:
            made = await connected(it, 20)
            share = established(it)[before["me-2"]]
            os.kill(before["me-2"], signal.SIGTERM)
            await asyncio.to_thread(until, lambda: "a worker is ready" in it.out, "the replacement")
            gone = [client for client in made if client.close_code is not None]
            assert [client.close_code for client in gone] == [1001] * share
            for client in gone:
                assert await client.resume()
            for client in made:
                await client.close()

        asyncio.run(run())
        assert 'worker=me-2 how="status 0"\n' in it.out
        it.stop()


@pytest.mark.statement("BR-57")
def test_clients_of_workers_that_are_killed_resume_on_the_others_and_miss_nothing() -> None:
    plan = Plan(broker="workers", nodes=1, clients=40, seconds=10, rate=60, faults={"worker": (0.3, 0.6)})
    report = run(plan)
    assert clean(report, plan), f"{report.counts}\n{report}"
    assert report.counts["resumes"] >= 40
    assert report.counts["replayed"] > 0


# -- starts that fail


def test_what_keeps_all_from_starting_is_said_once_with_status_1(tmp_path: Path) -> None:
    with Process(*OPEN, "--broker=none", "--pubsub=rigged_failing", cwd=tmp_path, env=RIGGED) as it:
        assert it.wait() == 1
        [error] = [line for line in it.out.splitlines() if " ERR " in line]
        assert error.endswith(" ERR cannot start: rigged: no luck nodeid=me")
        assert it.err == ""


def test_a_surprise_is_said_once_with_the_traceback_of_the_worker(tmp_path: Path) -> None:
    with Process(*OPEN, "--broker=none", "--pubsub=rigged_surprising", cwd=tmp_path, env=RIGGED) as it:
        assert it.wait() == 1
        assert len([line for line in it.out.splitlines() if " ERR " in line]) == 1
        assert it.out.count('raise ValueError("a surprise")') == 1
        assert it.err == ""


@pytest.mark.statement("CO-26")
def test_an_occupied_port_is_named_with_status_1_before_there_are_workers(tmp_path: Path) -> None:
    with socket.create_server((HOST, 0)) as occupied, Process(*nats(), cwd=tmp_path) as it:
        taken = occupied.getsockname()[1]
        command = (*TWISTD, "-n", "--pidfile=", "anycable", *nats(), f"--host={HOST}", f"--port={taken}")
        done = ended(*command, f"--http_broadcast_port={free_port()}", cwd=tmp_path)
        assert done.returncode == 1
        [error] = [line for line in done.stdout.splitlines() if " ERR " in line]
        assert f" ERR cannot start: cannot listen on {HOST}:{taken}: [Errno 98] Address already in use " in error
        assert "nodeid=me-" not in done.stdout
        ready(it)
        it.stop()


@pytest.mark.parametrize("options", [("--broker=memory",), ("--broker=none", "--pubsub=none")])
def test_what_workers_cannot_share_is_refused_in_one_line(options: tuple[str, ...], tmp_path: Path) -> None:
    done = ended(*TWISTD, "-n", "anycable", *OPEN, *options, cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    sentence = r"anycable: --(broker|pubsub): .*2 workers.*; leave broker .*out for embedded NATS, or give .*\n"
    assert re.fullmatch(sentence, done.stderr)


# -- the end


@pytest.mark.statement("CO-39", "CP-137")
@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_to_the_whole_group_ends_all_with_status_0(number: int, tmp_path: Path) -> None:
    """As a terminal or a supervisor sends it: the workers get it too."""
    with Process(*nats(), cwd=tmp_path) as it:
        pids = ready(it).values()

        async def run() -> None:
            made = await connected(it, 30)
            os.killpg(it.pid, number)
            for client in made:
                await client.ended(10)
                assert (client.disconnect, client.close_code) == (None, 1001)

        asyncio.run(run())
        assert it.wait() == 0
        assert it.err == ""
        assert not any(map(exists, pids))
        assert "interrupted again" not in it.out
        assert it.out.splitlines()[-1].endswith(" INF Stopped nodeid=me context=workers")


@pytest.mark.statement("CO-43")
def test_a_second_signal_ends_a_drain(tmp_path: Path, redis: tuple[str, ...]) -> None:
    with Process(*redis, "--shutdown_slowdrain", cwd=tmp_path) as it:
        ready(it)

        async def run() -> None:
            made = await connected(it, 40)
            it.send()
            await asyncio.sleep(1.0)
            assert it.running
            assert await asyncio.to_thread(it.stop) < 2.5
            for client in made:
                await client.ended(5)
                assert client.close_code == 1001

        asyncio.run(run())


def test_a_worker_that_does_not_stop_is_killed(tmp_path: Path, redis: tuple[str, ...]) -> None:
    with Process(*redis, "--shutdown_timeout=1", cwd=tmp_path) as it:
        pids = ready(it)
        os.kill(pids["me-1"], signal.SIGSTOP)
        assert 2.0 < it.stop() < 5.0
        assert " WRN a worker did not stop and is killed nodeid=me context=workers worker=me-1\n" in it.out


def test_when_the_parent_is_killed_nothing_is_left(tmp_path: Path) -> None:
    options = nats()
    bus = int(options[-1].rpartition(":")[2])
    with Process(*options, cwd=tmp_path) as it:
        pids = ready(it)
        os.kill(pids["me-2"], signal.SIGSTOP)
        assert accepts(bus)
        it.send(signal.SIGKILL)
        until(lambda: not exists(pids["me-1"]), "the end of the worker", within=5)
        until(lambda: not accepts(bus), "the end of NATS", within=5)
        os.kill(pids["me-2"], signal.SIGCONT)
        until(lambda: not exists(pids["me-2"]), "the end of the one that slept", within=5)
        assert not accepts(it.port)


# -- signals, logs, secrets


@pytest.mark.statement("CO-50")
def test_hup_reads_the_certificate_again_in_every_worker_and_cuts_nobody(
    tmp_path: Path, redis: tuple[str, ...]
) -> None:
    certify(tmp_path, "first")
    options = (f"--ssl_cert={tmp_path / 'cert.pem'}", f"--ssl_key={tmp_path / 'key.pem'}")
    with Process(*redis, *options, cwd=tmp_path) as it:
        ready(it)
        before = [Client(it.port) for _ in range(20)]
        assert all(client.sees(b"welcome") and client.certified == "CN=first" for client in before)
        assert len([count for count in established(it).values() if count]) == 2
        (tmp_path / "cert.pem").write_text("not a certificate")
        it.send(signal.SIGHUP)
        until(lambda: "the certificate stays as it was: ssl_cert: cannot use" in it.out, "the refusal")
        assert it.out.count("the certificate stays as it was") == 1
        certify(tmp_path, "second")
        it.send(signal.SIGHUP)

        def renewed() -> bool:
            after = [Client(it.port) for _ in range(20)]
            names = {client.certified for client in after}
            for client in after:
                client.close()
            return names == {"CN=second"}

        until(renewed, "the new certificate")
        assert all(client.sees(b'"type":"ping"') for client in before)
        for client in before:
            client.close()
        it.stop()


def test_a_daemon_has_the_records_of_all_in_its_log_file(tmp_path: Path) -> None:
    port = free_port()
    options = (*nats(), f"--host={HOST}", f"--port={port}", f"--http_broadcast_port={free_port()}")
    log = tmp_path / "it.log"
    with adopting():
        started = ended(*TWISTD, "--pidfile=it.pid", "--logfile=it.log", "anycable", *options, cwd=tmp_path)
        assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
        pid = int((tmp_path / "it.pid").read_text())
        try:
            until(lambda: "Workers are ready" in log.read_text(), "the start", within=30)
            assert set(workers(log.read_text())) == {"me-1", "me-2"}
            log.rename(tmp_path / "moved.log")
            os.kill(pid, signal.SIGHUP)
            until(log.exists, "the new log file")
            os.kill(pid, signal.SIGTERM)
            assert status_of(pid) == 0
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise
    lines = [*(tmp_path / "moved.log").read_text().splitlines(), *log.read_text().splitlines()]
    assert all(STAMP.match(line) for line in lines)
    stopped = [line for line in log.read_text().splitlines() if " INF Stopped " in line]
    assert {re.findall(r"nodeid=(\S+)", line)[0] for line in stopped} == {"me", "me-1", "me-2"}
    assert not (tmp_path / "it.pid").exists()
    assert not accepts(port)


def test_no_secret_is_in_a_command_line_or_a_record(tmp_path: Path, redis: tuple[str, ...]) -> None:
    secret = "the-secret-of-the-application-itself"
    (tmp_path / "secret").write_text(secret)
    options = (*redis[1:], "--debug", "--secret_file=secret", "--jwt_rotated_secrets_file=secret")
    with Process(*options, cwd=tmp_path) as it:
        for pid in ready(it).values():
            shown = Path(f"/proc/{pid}/cmdline").read_bytes() + Path(f"/proc/{pid}/environ").read_bytes()
            assert secret.encode() not in shown
            assert b"redis://" not in shown
        assert post(it.broadcast_port, '{"stream":"a","data":"1"}') == 401
        it.stop()
        assert secret not in it.out


# -- in a program of one's own

PROGRAM = """
import sys
from twisted.application.service import MultiService
from twisted.internet import task
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread
from anycable_tx.config.load import defaults
from anycable_tx.service import AnyCableService
from tests.e2e.process import accepts, get

async def main(reactor):
    program = MultiService()
    settings = defaults(
        workers=2, public=True, broker="redis", redis_url="{url}",
        host="127.0.0.1", port={port}, http_broadcast_port={other},
    )
    service = AnyCableService(settings, reactor)
    service.setServiceParent(program)
    program.startService()
    await service.when_started()
    print(await deferToThread(get, {port}, "/health"))
    await program.stopService()
    print(await deferToThread(accepts, {port}))

task.react(lambda reactor: ensureDeferred(main(reactor)))
"""


def test_a_program_of_ones_own_can_have_workers(tmp_path: Path, redis: tuple[str, ...]) -> None:
    program = PROGRAM.format(port=free_port(), other=free_port(), url=redis[-1].partition("=")[2])
    root = Path(__file__).parent.parent.parent
    done = ended(sys.executable, "-c", program, cwd=tmp_path, env={"PYTHONPATH": str(root)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "(200, 'healthy\\n')\nFalse\n"
