"""The service in a program of somebody's own: no twistd, a real reactor, real sockets."""

from __future__ import annotations

from pathlib import Path

import pytest

from anycable_tx.testing.processes import free_port
from tests.e2e.process import TWISTD, ended

pytestmark = pytest.mark.e2e

PROGRAM = """
import logging, signal, sys, warnings
from twisted.application.service import MultiService
from twisted.internet import task
from twisted.internet.defer import ensureDeferred
from twisted.internet.threads import deferToThread
from twisted.logger import globalLogPublisher
from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from anycable_tx.service import AnyCableService
from tests.e2e.process import accepts, get

PORT, OTHER = {port}, {other}

def touched():
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)]
    observers = list(globalLogPublisher._observers)
    return handlers, warnings.showwarning, logging.getLogger().handlers[:], sys.stdout, observers

async def main(reactor):
    await task.deferLater(reactor, 0)  # the reactor's own handlers are there
    before = touched()
    program = MultiService()
    service = AnyCableService(
        defaults(public=True, broker="memory", host="127.0.0.1", port=PORT, http_broadcast_port=OTHER), reactor
    )
    service.setServiceParent(program)
    program.startService()
    await service.when_started()
    print(await deferToThread(get, PORT, "/health"))
    again = AnyCableService(
        defaults(public=True, host="127.0.0.1", port=PORT, http_broadcast_port=OTHER + 1), reactor
    )
    try:
        again.startService()
    except ConfigurationError as e:
        print(str(e).startswith("cannot listen on"))
    await program.stopService()
    print(await deferToThread(accepts, PORT), touched() == before)

task.react(lambda reactor: ensureDeferred(main(reactor)))
"""


def test_it_starts_serves_and_stops_and_touches_neither_signals_nor_logs(tmp_path: Path) -> None:
    program = PROGRAM.format(port=free_port(), other=free_port())
    root = Path(__file__).parent.parent.parent
    done = ended(*TWISTD[:2], program, cwd=tmp_path, env={"PYTHONPATH": str(root)})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == "(200, 'healthy\\n')\nTrue\nFalse True\n"
