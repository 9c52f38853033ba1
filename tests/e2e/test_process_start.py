"""How the process starts, or says in one line why not; what it writes meanwhile."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path

import jwt
import pytest
from websockets.sync.client import connect

import anycable_tx
from anycable_tx.config.secrets import BROADCAST, derive_key
from anycable_tx.testing.processes import HOST, free_port
from tests.e2e.process import (
    COMMAND,
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

pytestmark = pytest.mark.e2e

CONF = Path(anycable_tx.__file__).parent.parent / "conf"
OPEN = ("--public", "--ignore_config_path")
#: A server with everything there is, and its start-up lines.
FULL = ("--presets=broker", "--secret=qwerty", "--path=/cable,/other", "--http_broadcast_cors", "--node_id=me")
LINES = [
    r"load presets",
    r"Starting AnyCable \S+-tx \(pid: \d+, open file limit: \d+, reactor: EPollReactor\)",
    r"Using configuration from file: conf\.yml",
    r"JWT authentication is enabled param=jid enforced=false",
    r"Using channels router: \$pubsub",
    r"Using in-memory broker \(epoch: \S+, history limit: 100, history ttl: 300s, sessions ttl: 300s, "
    r"presence ttl: 15s\)",
    r"auto-generated authorization secret from the application secret",
    r"Accept broadcast requests at http://127\.0\.0\.1:{broadcast}/_broadcast "
    r"\(authorization required, CORS enabled\)",
    r"no RPC configured",
    r"Handle WebSocket connections at http://127\.0\.0\.1:{port}/cable",
    r"Handle WebSocket connections at http://127\.0\.0\.1:{port}/other",
    r"Handle health requests at http://127\.0\.0\.1:{port}/health",
    r"Handle readiness requests at http://127\.0\.0\.1:{port}/ready",
    r"Handle API requests at http://127\.0\.0\.1:{port}/api \(authorization required\)",
]


def full_lines(it: Process, format: str = "{}") -> list[str]:
    ports = {"port": it.port, "broadcast": it.broadcast_port}
    return [re.sub(r"\{(port|broadcast)\}", lambda m: str(ports[m[1]]), line) for line in LINES]


# -- without a server


@pytest.mark.statement("CO-52")
def test_help_and_version_need_no_reactor(tmp_path: Path) -> None:
    script = (
        "import sys, atexit; atexit.register(lambda: print('reactor', 'twisted.internet.reactor' in sys.modules));"
        "from twisted.scripts.twistd import run; run()"
    )
    python = TWISTD[:2]
    overview = ended(*python, script, "--help", cwd=tmp_path)
    assert re.search(r"^ +anycable +A realtime server", overview.stdout, re.M)
    options = ended(*python, script, "anycable", "--help", cwd=tmp_path)
    assert "--shutdown_slowdrain" in options.stdout
    version = ended(*python, script, "anycable", "--version", cwd=tmp_path)
    assert version.stdout == f"{anycable_tx.__version__}\nreactor False\n"
    for done in (overview, options, version):
        assert (done.returncode, done.stderr) == (0, "")
        assert done.stdout.endswith("\nreactor False\n")


def test_the_command_is_installed_and_knows_the_same_options(tmp_path: Path) -> None:
    [script] = entry_points(group="console_scripts", name="anycable-tx")
    assert script.value == "anycable_tx.main:main"
    assert ended(*COMMAND, "--version", cwd=tmp_path).stdout == f"{anycable_tx.__version__}\n"


@pytest.mark.statement("BR-80")
def test_an_unknown_broker_is_answered_with_the_names_that_are_found(tmp_path: Path) -> None:
    done = ended(*TWISTD, "-n", "anycable", *OPEN, "--broker=redsi", cwd=tmp_path)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == "anycable: broker: there is no broker named 'redsi'; found: memory, nats, none, redis\n"
    assert list(tmp_path.iterdir()) == []


def test_a_provider_that_cannot_be_loaded_is_named_in_one_line(tmp_path: Path) -> None:
    done = ended(*TWISTD, "-n", "anycable", *OPEN, "--broker=rigged_unloadable", cwd=tmp_path, env=RIGGED)
    assert (done.returncode, done.stdout) == (1, "")
    assert re.fullmatch(
        r"anycable: broker: the broker 'rigged_unloadable' cannot be loaded from 'rigged:no_such_thing': .*\n",
        done.stderr,
    )


@pytest.mark.statement("CO-26", "CO-39")
@pytest.mark.parametrize(("which", "daemon"), [("port", True), ("http_broadcast_port", False)])
def test_an_occupied_port_is_named_with_status_1_and_leaves_no_pid_file(
    which: str, daemon: bool, tmp_path: Path
) -> None:
    with socket.create_server((HOST, 0)) as occupied:
        taken = occupied.getsockname()[1]
        ports = {"port": free_port(), "http_broadcast_port": free_port(), which: taken}
        mode = ["--logfile=it.log"] if daemon else ["-n"]
        options = [f"--{name}={port}" for name, port in ports.items()]
        done = ended(*TWISTD, *mode, "--pidfile=it.pid", "anycable", *OPEN, f"--host={HOST}", *options, cwd=tmp_path)
    assert done.returncode == 1
    log = (tmp_path / "it.log").read_text() if daemon else done.stdout
    line = log.splitlines()[-1]
    assert f" ERR cannot start: cannot listen on {HOST}:{taken}: [Errno 98] Address already in use nodeid=" in line
    assert f"cannot listen on {HOST}:{taken}" in (done.stderr if daemon else line)
    assert "Traceback" not in log + done.stdout + done.stderr
    assert "Handle WebSocket" not in log
    until(lambda: not (tmp_path / "it.pid").exists(), "the pid file is removed")


@pytest.mark.statement("CO-39")
@pytest.mark.parametrize(
    ("bus", "error"), [("failing", "cannot start: rigged: no luck"), ("surprising", "cannot start")]
)
def test_a_start_that_fails_after_a_while_ends_with_one_error_and_status_1(
    bus: str, error: str, tmp_path: Path
) -> None:
    twistd = ("-n", "--pidfile=it.pid")
    with Process(*OPEN, f"--pubsub=rigged_{bus}", "--node_id=me", cwd=tmp_path, env=RIGGED, twistd=twistd) as it:
        assert it.wait() == 1
        errors = [line for line in it.out.splitlines() if " ERR " in line]
        assert len(errors) == 1
        assert f" ERR {error} nodeid=me" in errors[0]
        assert ("Traceback" in it.out) == (bus == "surprising")
        assert it.err == ""
    assert not (tmp_path / "it.pid").exists()


# -- what is written


@pytest.mark.statement("CO-35", "BR-78", "CO-32")
@pytest.mark.parametrize("command", ["twistd", "anycable-tx"])
def test_the_start_up_lines_come_in_their_order_whichever_command_it_is(command: str, tmp_path: Path) -> None:
    (tmp_path / "conf.yml").write_text("strict: true\n")
    with Process(
        *FULL, "--config_path=conf.yml", cwd=tmp_path, command=COMMAND if command == "anycable-tx" else ()
    ) as it:
        it.ready()
        lines = it.out.splitlines()
        for line, pattern in zip(lines, full_lines(it), strict=True):
            assert STAMP.match(line)
            assert re.fullmatch(pattern + r" nodeid=me( context=.*)?", STAMP.sub("", line))
        assert lines[0].endswith("load presets nodeid=me context=config presets=broker")
        assert "Accept" in lines[7]
        assert lines[7].endswith(" nodeid=me context=broadcast provider=http")
        assert accepts(it.port)
        assert accepts(it.broadcast_port)
        it.stop()
        assert [STAMP.sub("", line) for line in it.out.splitlines()[len(LINES) :]] == [
            "Shutting down... nodeid=me context=main",
            "Stopped nodeid=me context=main",
        ]
    assert {path.name for path in tmp_path.iterdir()} == {"conf.yml", f"out-{it.port}", f"err-{it.port}"}


@pytest.mark.statement("CO-33", "CO-35", "CO-36")
def test_the_same_lines_as_json(tmp_path: Path) -> None:
    (tmp_path / "conf.yml").write_text("logging: {format: json}\n")
    with Process(*FULL[:-1], "--config_path=conf.yml", cwd=tmp_path) as it:
        it.ready()
        records = [json.loads(line) for line in it.out.splitlines()]
        for record, pattern in zip(records, full_lines(it), strict=True):
            assert re.fullmatch(pattern, record["msg"])
            assert record["level"] == "INFO"
            assert {"time", "level", "msg", "nodeid"} <= set(record)
        [node_id] = {record["nodeid"] for record in records}
        assert re.fullmatch(r"[\w-]{6}", node_id)
        it.stop()


@pytest.mark.statement("CO-34")
def test_the_level_warn_hides_what_is_no_warning_and_logging_and_warnings_are_led_into_the_log(
    tmp_path: Path,
) -> None:
    options = ("--log_level=warn", "--pubsub=rigged_talking", "--log_format=json")
    with Process(*OPEN, *options, cwd=tmp_path, env=RIGGED) as it:
        until(lambda: accepts(it.port), "the start")
        it.stop()
        records = [json.loads(line) for line in it.out.splitlines()]
    assert {record["level"] for record in records} == {"WARN"}
    public, by_logging, by_warnings = [record["msg"] for record in records]
    assert "public mode" in public
    assert by_logging == "said by logging"
    assert "said by warnings" in by_warnings


def test_what_a_library_prints_is_a_record_too(tmp_path: Path) -> None:
    with Process(*OPEN, "--pubsub=rigged_talking", "--node_id=me", cwd=tmp_path, env=RIGGED) as it:
        it.ready().stop()
        assert all(STAMP.match(line) for line in it.out.splitlines())
        assert " INF printed nodeid=me\n" in it.out
        assert "whispered" not in it.out


@pytest.mark.statement("CO-32")
def test_no_secret_is_ever_in_a_record(tmp_path: Path) -> None:
    secret, other = "the-secret-of-the-application-itself", "a-secret-that-is-being-replaced-now"
    key = derive_key(secret, BROADCAST)
    good = jwt.encode({"ext": '{"user":"ann"}'}, secret)
    bad = jwt.encode({"ext": '{"user":"eve"}'}, "not-the-" + secret)
    expired = jwt.encode({"ext": '{"user":"bob"}', "exp": 1_700_000_000}, secret)
    env = {"ANYCABLE_SECRET": secret, "ANYCABLE_JWT_ROTATED_SECRETS": other}
    with Process("--debug", "--presets=broker", "--ignore_config_path", cwd=tmp_path, env=env) as it:
        it.ready()
        sids = []
        for query, options in (
            (f"?jid={good}", {}),
            (f"?jid={bad}", {}),
            (f"?jid={expired}&sid=stolen-session", {}),
            ("", {"subprotocols": ["actioncable-v1-ext-json", f"anycable-token.{good}"]}),
            ("", {"additional_headers": {"x-jid": bad, "Cookie": "session=cookie-secret"}}),
        ):
            with connect(it.url + query, proxy=None, **options) as ws:  # type: ignore[arg-type]
                welcome = json.loads(ws.recv(5))
                sids += [welcome["sid"]] if "sid" in welcome else []
                if welcome["type"] == "welcome":
                    ws.send(f'{{"command":"subscribe","identifier":"{good}"}}')
                    ws.send(f"nonsense {good}")
                    ws.send('{"command":"whisper","identifier":"x","data":' + json.dumps({"password": "p"}) + "}")
        assert sids
        assert get(it.port, f"/nowhere?jid={good}")[0] == 404
        with pytest.raises(Exception, match="404"), connect(f"ws://{HOST}:{it.port}/nowhere?jid={good}", proxy=None):
            pass
        statuses = [post(it.broadcast_port, '{"stream":"a","data":"1"}', k) for k in (key, "wrong-" + key, bad)]
        assert statuses == [201, 401, 401]
        assert post(it.broadcast_port, '{"stream":', key) in (201, 422)
        it.stop()
        assert "Debug mode is on" in it.out
        assert " DBG " in it.out
        for what in (secret, other, key, good, bad, expired, "cookie-secret", "stolen-session"):
            assert what not in it.out
            assert what.rpartition(".")[2] not in it.out


# -- the reactor


def test_an_explicit_reactor_is_respected(tmp_path: Path) -> None:
    with Process(*OPEN, cwd=tmp_path, twistd=("-n", "--pidfile=", "-r", "select")) as it:
        it.ready()
        assert "reactor: SelectReactor)" in it.out
        assert get(it.port, "/health") == (200, "healthy\n")
        it.stop()


@pytest.mark.parametrize(("twistd", "loop"), [((), "uvloop"), (("-r", "asyncio"), r"asyncio\.unix_events")])
def test_a_provider_that_needs_asyncio_gets_it(twistd: tuple[str, ...], loop: str, tmp_path: Path) -> None:
    with Process(
        *OPEN, "--pubsub=rigged_asyncio", cwd=tmp_path, env=RIGGED, twistd=("-n", "--pidfile=", *twistd)
    ) as it:
        it.ready()
        assert "reactor: AsyncioSelectorReactor)" in it.out
        assert re.search(rf" INF a loop of {loop} ", it.out)
        assert get(it.port, "/ready") == (200, "ready\n")
        it.stop()


def test_an_explicit_reactor_without_asyncio_is_refused_in_one_sentence(tmp_path: Path) -> None:
    done = ended(
        *TWISTD, "-n", "-r", "select", "anycable", *OPEN, "--pubsub=rigged_asyncio", cwd=tmp_path, env=RIGGED
    )
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr == (
        "anycable: reactor: the provider 'rigged_asyncio' needs asyncio and the reactor 'select' has none; "
        "leave out -r, or use -r asyncio\n"
    )


# -- daemons, and several of them


@pytest.mark.statement("CO-39", "CO-32")
@pytest.mark.parametrize(("number", "bus"), [(signal.SIGTERM, "none"), (signal.SIGINT, "rigged_asyncio")])
def test_a_daemon_writes_our_records_to_its_log_file_and_ends_with_status_0(
    number: int, bus: str, tmp_path: Path
) -> None:
    port = free_port()
    options = (*OPEN, f"--host={HOST}", f"--port={port}", f"--http_broadcast_port={free_port()}", f"--pubsub={bus}")
    with adopting():
        start = (*TWISTD, "--pidfile=it.pid", "--logfile=it.log", "anycable", *options)
        started = ended(*start, cwd=tmp_path, env=RIGGED)
        assert (started.returncode, started.stdout, started.stderr) == (0, "", "")
        pid = int((tmp_path / "it.pid").read_text())
        try:
            until(lambda: accepts(port), "the start")
            assert get(port, "/health") == (200, "healthy\n")
            os.kill(pid, signal.SIGHUP)
            os.kill(pid, number)
            assert status_of(pid) == 0
        except BaseException:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            raise
    lines = (tmp_path / "it.log").read_text().splitlines()
    assert all(STAMP.match(line) for line in lines)
    assert any("Handle WebSocket connections at" in line for line in lines)
    assert "Stopped" in lines[-1]
    assert {path.name for path in tmp_path.iterdir()} == {"it.log"}
    assert not accepts(port)


@pytest.mark.statement("CO-51")
def test_two_instances_run_side_by_side_from_the_shipped_configuration(tmp_path: Path) -> None:
    (tmp_path / "conf").symlink_to(CONF)
    env = {"ANYCABLE_SECRET": "qwerty"}
    with (
        Process("--config_path=conf/anycable.yml", cwd=tmp_path, env=env, broadcast=False) as one,
        Process(cwd=tmp_path, env=env, broadcast=False) as two,
    ):
        for it in (one.ready(), two.ready()):
            assert "Using configuration from file: conf/anycable.yml" in it.out
            assert " WRN " not in it.out
            assert get(it.port, "/health") == (200, "healthy\n")
            assert post(it.port, '{"stream":"a","data":"1"}', derive_key("qwerty", BROADCAST)) == 201
        one.stop()
        assert get(two.port, "/health")[0] == 200
        two.stop(signal.SIGINT)
