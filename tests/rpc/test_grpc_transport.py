"""Calls over gRPC to real servers: what they carry, how they fail, and what is known of a failed one."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import grpc
import pytest

from anycable_tx.errors import ConfigurationError
from anycable_tx.rpc.definition import METHODS
from anycable_tx.rpc.transport import CallFailed, Code
from anycable_tx.testing.processes import free_port
from anycable_tx.testing.rpc_app import Application
from anycable_tx.testing.rpc_grpc_app import GrpcApp
from tests.rpc.grpc_support import Client, aborts, asked, backend, client, make, run


@contextmanager
def _process() -> Iterator[Any]:
    """An application in a process of its own; it prints its port, then a line for each connect, which it keeps."""
    code = (
        "import time; from anycable_tx.testing.rpc_app import Application as A;"
        "from anycable_tx.testing.rpc_grpc_app import GrpcApp;"
        "A.connect = lambda *_: print('begun', flush=True) or time.sleep(20);"
        "app = GrpcApp(A()).__enter__(); print(app.port, flush=True); time.sleep(30)"
    )
    with subprocess.Popen((sys.executable, "-c", code), stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


IDENTIFIER = json.dumps({"channel": "Chat", "room": "blue"})


class Slow(Application):
    """Its ``disconnect`` waits until it may go on."""

    def __init__(self) -> None:
        super().__init__()
        self.begun = threading.Event()
        self.go_on = threading.Event()

    def disconnect(self, request: dict[str, Any], sid: str) -> dict[str, Any] | None:
        self.begun.set()
        self.go_on.wait(10)
        return {"status": 1}


class TestAnswers:
    @run
    async def test_every_method_reaches_the_application_and_its_answer_comes_back(self) -> None:
        application = Application()
        application.restore = lambda request, sid: {"status": 1, "rejected_subscriptions": ["x"]}
        with GrpcApp(application) as app:
            async with client(app.port) as it:
                connected = await it.call("connect", env={"url": "ws://a/cable", "headers": {"cookie": "a=b"}})
                subscribed = await it.call("command", command="subscribe", identifier=IDENTIFIER)
                ended = await it.call("disconnect", identifiers="u", subscriptions=[IDENTIFIER])
                restored = await it.call("restore", prev_sid="s0", disconnect_notified=True)
        assert json.loads(connected.identifiers) == {"user": "s1"}
        assert (subscribed.status, subscribed.streams) == (1, ["blue"])
        assert ended.status == 1
        assert restored.rejected_subscriptions == ["x"]
        assert application.asked == [
            ("connect", {"env": {"url": "ws://a/cable", "headers": {"cookie": "a=b"}}}, "s1"),
            ("command", {"command": "subscribe", "identifier": IDENTIFIER, "env": {}}, "s1"),
            ("disconnect", {"identifiers": "u", "subscriptions": [IDENTIFIER], "env": {}}, "s1"),
            ("restore", {"prev_sid": "s0", "disconnect_notified": True, "env": {}}, "s1"),
        ]

    @run
    async def test_a_call_carries_the_session_the_versions_and_the_time_it_has(self) -> None:
        seen: list[tuple[dict[str, Any], float | None]] = []

        def behave(path: str, request: bytes, context: Any) -> bytes:
            seen.append((dict(context.invocation_metadata()), context.time_remaining()))
            return b""

        with backend(behave) as port:
            async with client(port) as it:
                await it.call(within=7)
                await it.call(within=None)
        (first, left), (_, unlimited) = seen
        assert (first["sid"], first["protov"]) == ("s1", "v1")
        assert left is not None
        assert 5 < left <= 7
        assert unlimited is None or unlimited > 1e6

    @run
    async def test_an_error_within_the_answer_is_no_failure_of_the_call(self) -> None:
        reply = METHODS["command"].reply(error_msg="unsupported protocol version")
        with backend(lambda path, request, context: reply.SerializeToString()) as port:
            async with client(port) as it:
                answer = await it.call("command")
        assert (answer.status, answer.error_msg) == (0, "unsupported protocol version")

    def test_an_application_that_knows_other_versions_only_says_so_within_the_answer(self) -> None:
        with GrpcApp(Application()) as app, grpc.insecure_channel(f"127.0.0.1:{app.port}") as channel:
            call = channel.unary_unary(METHODS["connect"].path, None, METHODS["connect"].reply.FromString)
            answer = call(b"", metadata=(("protov", "v2,v3"),))
        assert (answer.status, answer.error_msg) == (0, "this application speaks v1 of the protocol only")


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "code", "delivered"),
        [
            (grpc.StatusCode.UNAVAILABLE, Code.UNAVAILABLE, True),
            (grpc.StatusCode.RESOURCE_EXHAUSTED, Code.EXHAUSTED, False),
            (grpc.StatusCode.DEADLINE_EXCEEDED, Code.TIMEOUT, True),
            (grpc.StatusCode.UNIMPLEMENTED, Code.UNIMPLEMENTED, False),
            (grpc.StatusCode.UNAUTHENTICATED, Code.UNAUTHENTICATED, False),
            (grpc.StatusCode.INVALID_ARGUMENT, Code.INVALID, True),
            (grpc.StatusCode.INTERNAL, Code.UNKNOWN, True),
            (grpc.StatusCode.CANCELLED, Code.UNKNOWN, True),
        ],
    )
    @run
    async def test_a_status_of_the_backend_is_the_code(
        self, status: grpc.StatusCode, code: Code, delivered: bool
    ) -> None:
        with backend(aborts(status, "because")) as port:
            async with client(port) as it:
                failed = await it.failure()
        assert (failed.reason, failed.delivered) == (code, delivered)
        assert str(failed) == f"{status.name}: because"

    @run
    async def test_a_backend_without_the_method_says_so(self) -> None:
        with GrpcApp(Application()) as app:
            async with client(app.port) as it:
                failed = await it.failure("restore")
                assert (await it.call("disconnect")).status == 1
        assert (failed.reason, failed.delivered) == (Code.UNIMPLEMENTED, False)

    @run
    async def test_a_server_of_another_service_implements_nothing(self) -> None:
        server = grpc.server(None)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        async with client(port) as it:
            assert (await it.failure()).reason is Code.UNIMPLEMENTED
        server.stop(0).wait()

    @run
    async def test_an_answer_that_is_no_message_fails_and_was_delivered(self) -> None:
        with backend(lambda path, request, context: b"\xff\xff") as port:
            async with client(port) as it:
                failed = await it.failure()
        assert (failed.reason, failed.delivered) == (Code.UNKNOWN, True)

    @run
    async def test_a_call_that_takes_too_long_may_have_been_carried_out(self) -> None:
        application = Slow()
        with GrpcApp(application) as app:
            async with client(app.port) as it:
                failed = await it.failure("disconnect", within=0.2)
                application.go_on.set()
        assert (failed.reason, failed.delivered) == (Code.TIMEOUT, True)
        assert len(application.asked) == 1

    @run
    async def test_no_time_at_all_is_not_enough_to_send_it(self) -> None:
        application = Application()
        with GrpcApp(application) as app:
            async with client(app.port) as it:
                await it.call()
                failed = await it.failure(within=0)
        assert (failed.reason, failed.delivered) == (Code.TIMEOUT, False)
        assert len(application.asked) == 1

    @pytest.mark.parametrize("sid", ["a\nb", "ü"])
    @run
    async def test_a_session_id_that_metadata_cannot_hold_is_not_sent(self, sid: str) -> None:
        async with client(free_port()) as it:
            with pytest.raises(CallFailed, match="cannot be sent") as error:
                await it.transport.call("connect", {}, sid, 1)
        assert (error.value.reason, error.value.delivered) == (Code.INVALID, False)


class TestSizes:
    @pytest.mark.statement("RA-21")
    @run
    async def test_an_answer_over_the_limit_is_told_from_a_backend_that_asks_for_patience(self) -> None:
        calls: list[str] = []

        def behave(path: str, request: bytes, context: Any) -> bytes:
            calls.append(path)
            return METHODS["command"].reply(status=1, transmissions=["x" * 5 * 2**20]).SerializeToString()

        with backend(behave) as port:
            async with client(port) as it:
                failed = await it.failure("command")
        assert (failed.reason, failed.delivered) == (Code.TOO_LARGE, True)
        assert "rpc_max_call_recv_size (4194304 bytes)" in str(failed)
        assert calls == ["/anycable.RPC/Command"]

    @pytest.mark.parametrize(("size", "fits"), [(1000, True), (1100, False)])
    @run
    async def test_the_limit_of_answers_can_be_set(self, size: int, fits: bool) -> None:
        reply = METHODS["connect"].reply(status=1, identifiers="x" * size)
        with backend(lambda path, request, context: reply.SerializeToString()) as port:
            async with client(port, rpc_max_call_recv_size=1024) as it:
                if fits:
                    assert (await it.call()).status == 1
                else:
                    assert (await it.failure()).reason is Code.TOO_LARGE

    @run
    async def test_a_request_over_our_limit_is_not_sent(self) -> None:
        application = Application()
        with GrpcApp(application) as app:
            async with client(app.port, rpc_max_call_send_size=1024) as it:
                failed = await it.failure(env={"url": "x" * 1100})
                assert (await it.call(env={"url": "x" * 1000})).status == 1
        assert (failed.reason, failed.delivered) == (Code.TOO_LARGE, False)
        assert "rpc_max_call_send_size allows 1024" in str(failed)
        assert len(application.asked) == 1

    @pytest.mark.statement("RA-21")
    @run
    async def test_a_request_over_the_backends_limit_was_not_carried_out(self) -> None:
        with backend(lambda path, request, context: b"", ("grpc.max_receive_message_length", 1024)) as port:
            async with client(port) as it:
                failed = await it.failure(env={"url": "x" * 1100})
        assert failed.reason is Code.TOO_LARGE
        # Older versions of gRPC do not tell whose limit it was.
        assert failed.delivered is ("SERVER:" not in str(failed))


class TestConnections:
    @run
    async def test_a_backend_that_is_not_there_stops_neither_the_start_nor_delivers(self) -> None:
        port = free_port()
        async with client(port) as it:
            failed = await it.failure()
            assert (failed.reason, failed.delivered) == (Code.UNAVAILABLE, False)
            assert "Connection refused" in str(failed)
            assert it.transport.connections() == 0

    @run
    async def test_once_tried_again_in_vain_calls_fail_at_once(self) -> None:
        async with client(free_port()) as it:
            failures = [await it.failure() for _ in range(5)]
            reasons = [failed.reason for failed in failures]
            assert set(reasons[:2]) <= {Code.UNAVAILABLE, Code.UNREACHABLE}
            assert reasons[0] is Code.UNAVAILABLE
            assert reasons[2:] == [Code.UNREACHABLE] * 3
            assert not any(failed.delivered for failed in failures)

    @pytest.mark.statement("RA-41")
    @run
    async def test_the_problem_is_known_from_the_loss_of_the_backend_to_its_return(self) -> None:
        port = free_port()
        async with client(port) as it:
            assert it.transport.problem() == ""  # nothing is known yet
            await it.until(it.transport.problem)
            assert "Connection refused" in it.transport.problem()
            with GrpcApp(Application(), port):
                await it.until(it.transport.connections)
                assert it.transport.problem() == ""
                assert (await it.call()).status == 1
            await it.until(it.transport.problem)
            assert it.transport.connections() == 0
            with GrpcApp(Application(), port):
                await it.until(lambda: not it.transport.problem())
                assert (await it.call()).status == 1
                assert it.transport.connections() == 1

    @run
    async def test_the_first_call_after_each_loss_connects_without_waiting(self) -> None:
        port = free_port()
        async with client(port) as it:
            for _ in range(3):
                await it.until(it.transport.problem)
                await asyncio.sleep(0.3)  # the next attempt by itself is some time off by now
                with GrpcApp(Application(), port):
                    assert (await it.call()).status == 1

    @run
    async def test_a_call_that_loses_its_connection_may_have_been_carried_out(self) -> None:
        with _process() as process:
            async with client(int(process.stdout.readline())) as it:
                call = it.begin()
                await asyncio.to_thread(process.stdout.readline)
                process.kill()
                with pytest.raises(CallFailed) as error:
                    await asked(call)
        assert (error.value.reason, error.value.delivered) == (Code.UNAVAILABLE, True)

    @run
    async def test_a_connection_that_is_not_made_in_time_delivers_nothing(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with client(silent.getsockname()[1]) as it:
                failed = await it.failure(within=0.2)
                assert it.transport.connections() == 0
        assert (failed.reason, failed.delivered) == (Code.TIMEOUT, False)

    @run
    async def test_calls_under_way_on_a_connection_that_closes_come_to_their_end(self) -> None:
        application = Slow()
        app = GrpcApp(application)
        with app:
            async with client(app.port) as it:
                slow = it.begin("disconnect")
                await asyncio.to_thread(application.begun.wait, 10)
                stopping = app._server.stop(10)  # takes no more calls
                await it.until(it.transport.problem)
                while (await it.failure()).reason is not Code.UNREACHABLE:  # the channel was made anew
                    pass
                application.go_on.set()
                assert (await asked(slow)).status == 1
                await asyncio.to_thread(stopping.wait)

    @run
    async def test_a_cancelled_call_is_cancelled_at_the_backend_too(self) -> None:
        ended = threading.Event()
        begun = threading.Event()

        def behave(path: str, request: bytes, context: Any) -> bytes:
            context.add_callback(ended.set)
            begun.set()
            ended.wait(10)
            return b""

        with backend(behave) as port:
            async with client(port) as it:
                call = it.begin()
                await asyncio.to_thread(begun.wait, 10)
                assert not ended.is_set()
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked(call)
                assert await asyncio.to_thread(ended.wait, 5)

    @run
    async def test_a_call_cancelled_while_there_is_no_connection_is_not_made(self) -> None:
        port = free_port()
        with socket.create_server(("127.0.0.1", port)):
            async with client(port) as it:
                call, other = it.begin(), it.begin(within=1)
                await asyncio.sleep(0.05)
                call.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await asked(call)
                with pytest.raises(CallFailed, match="in time"):  # its neighbour goes on waiting
                    await asked(other)

    @run
    async def test_what_is_under_way_when_it_stops_fails_and_may_have_been_carried_out(self) -> None:
        application = Slow()
        with GrpcApp(application) as app:
            async with client(app.port) as it:
                slow = it.begin("disconnect")
                await asyncio.to_thread(application.begun.wait, 10)
                await it.stop()
                with pytest.raises(CallFailed, match="closed here") as error:
                    await asked(slow)
                later = await it.failure()
                assert (it.transport.connections(), it.transport.problem()) == (0, "")
            application.go_on.set()
        assert (error.value.reason, error.value.delivered) == (Code.CANCELED, True)
        assert (later.reason, later.delivered) == (Code.CANCELED, False)

    @run
    async def test_who_waits_for_a_connection_when_it_stops_is_told(self) -> None:
        with socket.create_server(("127.0.0.1", 0)) as silent:
            async with client(silent.getsockname()[1]) as it:
                call = it.begin()
                await asyncio.sleep(0.05)
                await it.stop()
                with pytest.raises(CallFailed, match="stopping"):
                    await asked(call)


class TestLists:
    @run
    async def test_the_hosts_of_a_list_are_called_in_turn(self) -> None:
        applications = [Application() for _ in range(3)]
        with GrpcApp(applications[0]) as a, GrpcApp(applications[1]) as b, GrpcApp(applications[2]) as c:
            async with client("grpc-list://" + ",".join(f"127.0.0.1:{app.port}" for app in (a, b, c))) as it:
                await it.until(lambda: it.transport.connections() == 3)
                for _ in range(6):
                    await it.call()
        assert [len(application.asked) for application in applications] == [2, 2, 2]

    @pytest.mark.statement("RA-23")
    @run
    async def test_a_dead_host_of_a_list_costs_no_call(self) -> None:
        application = Application()
        with GrpcApp(application) as app:
            async with client(f"grpc-list://127.0.0.1:{free_port()}, ,127.0.0.1:{app.port}") as it:
                for _ in range(5):
                    assert (await it.call()).status == 1
                assert (it.transport.connections(), it.transport.problem()) == (1, "")
        assert len(application.asked) == 5

    @run
    async def test_a_host_that_comes_back_is_called_again(self) -> None:
        port = free_port()
        application = Application()
        with GrpcApp(Application()) as app:
            async with client(f"grpc-list://127.0.0.1:{port},127.0.0.1:{app.port}") as it:
                await it.call()
                with GrpcApp(application, port):
                    await it.until(lambda: it.transport.connections() == 2)
                    for _ in range(2):
                        await it.call()
        assert len(application.asked) == 1

    @run
    async def test_a_list_of_dead_hosts_says_what_is_wrong_with_each(self) -> None:
        ports = free_port(), free_port()
        async with client(f"grpc-list://127.0.0.1:{ports[0]},127.0.0.1:{ports[1]}") as it:
            assert (await it.failure()).reason is Code.UNAVAILABLE
            problem = it.transport.problem()
        assert all(f"127.0.0.1:{port}" in problem for port in ports)

    @run
    async def test_a_name_is_resolved(self) -> None:
        with GrpcApp(Application()) as app:
            for form in ("localhost:{}", "dns:///localhost:{}", "grpc://localhost:{}"):
                async with client(form.format(app.port)) as it:
                    assert (await it.call()).status == 1

    @run
    async def test_a_name_nobody_knows_is_unavailable(self) -> None:
        async with client("dns:///backend.invalid:50051") as it:
            failed = await it.failure()
        assert (failed.reason, failed.delivered) == (Code.UNAVAILABLE, False)


class TestCreation:
    def test_it_announces_the_address(self) -> None:
        assert make(" dns:///rpc.test:50051").announcement == "dns:///rpc.test:50051"

    def test_a_wrong_address_is_found_at_creation(self) -> None:
        with pytest.raises(ConfigurationError, match="rpc_host"):
            make("grpc-list://")

    @run
    async def test_it_can_be_stopped_before_it_was_used(self) -> None:
        transport = make("127.0.0.1:1")
        await transport.start()
        await transport.stop()
        await asyncio.sleep(0)
        assert (await Client(transport).failure()).reason is Code.CANCELED

    @pytest.mark.statement("RA-42")
    def test_without_the_library_it_names_the_package_and_the_alternative(self) -> None:
        code = (
            "import sys; sys.modules['grpc'] = None\n"
            "from anycable_tx.rpc.grpc_transport import create\n"
            "from anycable_tx.errors import ConfigurationError\n"
            "try: create({'rpc_host': 'localhost:50051'}, None, None)\n"
            "except ConfigurationError as e: print(e)\n"
        )
        text = subprocess.run(
            (sys.executable, "-c", code), check=True, capture_output=True, text=True, timeout=60
        ).stdout
        assert "pip install anycable-tx[grpc]" in text
        assert "rpc_host=http://host/path" in text

    @pytest.mark.statement("RA-42")
    def test_the_library_is_not_imported_for_anything_else(self) -> None:
        code = (
            "import sys\n"
            "from anycable_tx import providers, service\n"
            "import anycable_tx.controllers.rpc, anycable_tx.rpc.http_transport\n"
            "list(providers.providers())\n"
            "print([name for name in sys.modules if name.split('.')[0] in ('grpc', 'google')])\n"
        )
        text = subprocess.run(
            (sys.executable, "-c", code), check=True, capture_output=True, text=True, timeout=60
        ).stdout
        assert text == "[]\n"


@run
async def test_a_call_costs_no_connection_of_its_own() -> None:
    peers: set[str] = set()

    def behave(path: str, request: bytes, context: Any) -> bytes:
        peers.add(context.peer())
        time.sleep(0.01)
        return b""

    with backend(behave) as port:
        async with client(port) as it:
            await asyncio.gather(*(it.call() for _ in range(20)))
    assert len(peers) == 1
