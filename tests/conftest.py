"""Fixtures and hooks shared by all tests."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from anycable_tx.testing.nats_servers import OLDEST, binary
from anycable_tx.testing.processes import ProcessFailed
from tests import conformance

_WORST = ("failed", "skipped", "passed")
_SHOWN = "names in the source"


def pytest_addoption(parser: pytest.Parser) -> None:
    """``--conformance=PATH``: write the conformance report there when the run is over."""
    parser.addoption("--conformance", metavar="PATH", help="write the conformance report to PATH")


def pytest_configure(config: pytest.Config) -> None:
    """Watch the run only when a report is wanted."""
    if config.getoption("--conformance"):
        writes = not hasattr(config, "workerinput")
        config.pluginmanager.register(_Report(Path(config.getoption("--conformance")), writes), "conformance")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leave out what needs the oldest NATS server, where the system has none."""
    try:
        binary(OLDEST)
    except ProcessFailed as e:
        for item in items:
            if OLDEST in (item.callspec.params.values() if hasattr(item, "callspec") else ()):
                item.add_marker(pytest.mark.skip(reason=str(e)))


class _Report:
    """Collects the results of the tests that carry statement numbers and writes the report at the end.

    Where tests run in several processes their names in the source travel with their results.
    """

    def __init__(self, path: Path, writes: bool) -> None:
        self.path = path
        self.writes = writes
        self.outcomes: dict[conformance.Shown, str] = {}

    def pytest_collection_modifyitems(self, items: list[pytest.Item]) -> None:
        """Note what each test is called in the source; a class and a module stand for their tests."""
        for item in items:
            function = getattr(item, "function", None)
            if function is None:
                continue
            # What hypothesis makes of a test is a function of its own.
            function = getattr(getattr(function, "hypothesis", None), "inner_test", function)
            home = Path(sys.modules[function.__module__].__file__ or "")
            if not home.is_relative_to(conformance.ROOT):
                home = item.path  # made by a library, as hypothesis does for its state machines
            path = home.relative_to(conformance.ROOT).as_posix()
            parts = function.__qualname__.split(".")
            names = [(path, ".".join(parts[:n])) for n in range(len(parts) + 1)]
            if isinstance(item.parent, pytest.Class):  # its tests may be those of another class
                own = item.path.relative_to(conformance.ROOT).as_posix()
                names += [(place, item.parent.name) for place in {path, own}]
            item.user_properties.append((_SHOWN, names))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Keep the worst result of each name."""
        if report.when == "call" or report.outcome != "passed":
            names = [each for key, value in report.user_properties if key == _SHOWN for each in value]  # type: ignore[attr-defined]
            for shown in (conformance.Shown(*each) for each in names):
                known = self.outcomes.get(shown, "passed")
                self.outcomes[shown] = min(known, report.outcome, key=_WORST.index)

    def pytest_sessionfinish(self) -> None:
        """Write the report."""
        if self.writes:
            text = conformance.render(conformance.areas(), conformance.shown_by(), self.outcomes)
            self.path.write_text(text, "utf-8")
