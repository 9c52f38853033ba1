"""The fault proxy, as a child process between real sockets."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest

from anycable_tx.testing.processes import HOST, ProcessFailed, ProxyProcess, free_port

pytestmark = pytest.mark.e2e


class Echo:
    """A server that sends everything back and remembers how its connections ended."""

    def __init__(self) -> None:
        self._socket = socket.create_server((HOST, 0))
        self.port = self._socket.getsockname()[1]
        self.endings: list[str] = []
        self.received = 0
        self._threads: list[threading.Thread] = [threading.Thread(target=self._accept)]
        self._threads[0].start()

    def _accept(self) -> None:
        while True:
            try:
                peer, _ = self._socket.accept()
            except OSError:
                return
            thread = threading.Thread(target=self._serve, args=(peer,))
            self._threads.append(thread)
            thread.start()

    def _serve(self, peer: socket.socket) -> None:
        with peer:
            try:
                while data := peer.recv(65536):
                    self.received += len(data)
                    peer.sendall(data)
                self.endings.append("closed")
            except OSError:
                self.endings.append("reset")

    def close(self) -> None:
        self._socket.shutdown(socket.SHUT_RDWR)
        self._socket.close()
        for thread in self._threads:
            thread.join(10)
            assert not thread.is_alive()

    def wait_for(self, endings: list[str]) -> None:
        deadline = time.monotonic() + 5
        while sorted(self.endings) != sorted(endings) and time.monotonic() < deadline:
            time.sleep(0.01)
        assert sorted(self.endings) == sorted(endings)


@pytest.fixture
def echo() -> Iterator[Echo]:
    server = Echo()
    yield server
    server.close()


@pytest.fixture
def proxy(echo: Echo) -> Iterator[ProxyProcess]:
    with ProxyProcess(echo.port) as process:
        yield process


def connect(proxy: ProxyProcess) -> socket.socket:
    client = socket.create_connection((HOST, proxy.port), timeout=5)
    client.sendall(b"hi")
    assert read(client, 2) == b"hi"
    return client


def read(client: socket.socket, size: int) -> bytes:
    data = b""
    while len(data) < size:
        more = client.recv(size - len(data))
        if not more:
            break
        data += more
    return data


def silent(client: socket.socket, seconds: float = 0.3) -> bool:
    client.settimeout(seconds)
    try:
        client.recv(1)
    except TimeoutError:
        return True
    finally:
        client.settimeout(5)
    return False


def test_forwards_both_ways_and_passes_an_orderly_close_on(proxy: ProxyProcess, echo: Echo) -> None:
    payload = bytes(range(256)) * 8000
    with connect(proxy) as client:
        sender = threading.Thread(target=client.sendall, args=(payload,))
        sender.start()
        assert read(client, len(payload)) == payload
        sender.join()
        assert proxy.do("connections") == [1]
    echo.wait_for(["closed"])
    assert proxy.do("connections") == []


def test_cuts_one_connection_or_all_with_a_reset(proxy: ProxyProcess, echo: Echo) -> None:
    with connect(proxy) as first, connect(proxy) as second, connect(proxy) as third:
        assert proxy.do("cut", connection=2) == 1
        with pytest.raises(ConnectionResetError):
            second.recv(1)
        first.sendall(b"still")
        assert read(first, 5) == b"still"
        assert proxy.do("cut") == 2
        for client in (first, third):
            with pytest.raises(ConnectionResetError):
                client.recv(1)
        echo.wait_for(["reset"] * 3)


def test_cutting_the_clients_side_leaves_the_server_with_a_silent_connection(proxy: ProxyProcess, echo: Echo) -> None:
    with connect(proxy) as client:
        proxy.do("cut", side="client")
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        assert proxy.do("connections") == [1]
        assert echo.endings == []
        proxy.do("cut")
        echo.wait_for(["reset"])


@pytest.mark.parametrize("size", [1, 10, 100_000])
def test_cuts_after_exactly_so_many_bytes(proxy: ProxyProcess, size: int) -> None:
    with connect(proxy) as client:
        proxy.do("cut_after", size=size, connection=1)
        sender = threading.Thread(target=lambda: client.sendall(b"x" * (size + 50)))
        sender.start()
        assert read(client, size) == b"x" * size
        with pytest.raises(ConnectionResetError):
            client.recv(1)
        sender.join()


def test_stalls_until_it_heals_and_loses_nothing(proxy: ProxyProcess) -> None:
    with connect(proxy) as client:
        proxy.do("stall")
        client.sendall(b"later")
        assert silent(client)
        proxy.do("heal")
        assert read(client, 5) == b"later"


def test_drops_one_direction(proxy: ProxyProcess, echo: Echo) -> None:
    with connect(proxy) as client:
        proxy.do("drop", direction="down")
        client.sendall(b"12345")
        assert silent(client)
        assert echo.received == 7
        proxy.do("heal")
        client.sendall(b"abc")
        assert read(client, 3) == b"abc"


def test_a_close_in_a_dropping_direction_stays_unknown_to_the_other_side(proxy: ProxyProcess, echo: Echo) -> None:
    with connect(proxy):
        proxy.do("drop", direction="up")
    time.sleep(0.2)
    assert echo.endings == []
    assert proxy.do("connections") == [1]
    proxy.do("heal")
    echo.wait_for(["closed"])


def test_slows_down_to_a_rate(proxy: ProxyProcess) -> None:
    with connect(proxy) as client:
        proxy.do("slow", rate=10_000, direction="down")
        started = time.monotonic()
        client.sendall(b"x" * 5_000)
        assert read(client, 5_000) == b"x" * 5_000
        assert 0.35 < time.monotonic() - started < 2


def test_faults_of_all_hold_for_connections_to_come(proxy: ProxyProcess) -> None:
    proxy.do("cut_after", size=4)
    with socket.create_connection((HOST, proxy.port), timeout=5) as client:
        client.sendall(b"12345678")
        assert read(client, 4) == b"1234"
        with pytest.raises(ConnectionResetError):
            client.recv(1)
    proxy.do("heal")
    connect(proxy).close()


def test_refuses_new_connections_and_accepts_them_again(proxy: ProxyProcess) -> None:
    with connect(proxy) as old:
        proxy.do("refuse")
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection((HOST, proxy.port), timeout=5)
        old.sendall(b"old")
        assert read(old, 3) == b"old"
        proxy.do("accept")
        connect(proxy).close()


def test_resets_the_client_when_the_target_refuses() -> None:
    with ProxyProcess(free_port()) as proxy:
        # The reset may come before it is known here that there was a connection.
        with pytest.raises(ConnectionResetError), socket.create_connection((HOST, proxy.port), timeout=5) as client:
            client.recv(1)
        assert proxy.do("connections") == []


@pytest.mark.parametrize(
    ("order", "complaint"),
    [
        ({"name": "explode"}, "'explode' is not known"),
        ({"name": "drop", "direction": "left"}, "accepted are up, down, both"),
        ({"name": "slow", "rate": 0}, "any number above 0"),
        ({"name": "cut", "connection": 9}, "9 is not open; open are"),
    ],
)
def test_says_what_is_wrong_with_an_order(proxy: ProxyProcess, order: dict[str, object], complaint: str) -> None:
    with pytest.raises(ProcessFailed, match=complaint):
        proxy.do(**order)  # type: ignore[arg-type]
