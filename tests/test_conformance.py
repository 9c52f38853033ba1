"""The statements, the markers of the tests and docs/conformance.md agree."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests import conformance
from tests.conformance import Area, Shown, Statement

CHAPTERS = conformance.areas()
TESTS = conformance.shown_by()


def test_every_marker_names_a_statement_and_every_core_statement_has_a_test() -> None:
    assert conformance.problems(CHAPTERS, TESTS) == []


def test_the_report_lists_the_statements_and_tests_there_are() -> None:
    report = conformance.read_report(conformance.REPORT.read_text("utf-8"))
    expected = {s.id: (s.says, TESTS.get(s.id, [])) for area in CHAPTERS for s in area.statements}
    assert report == expected, "docs/conformance.md is stale: run pytest --conformance=docs/conformance.md"


def statement(id: str, scope: str = "core", waits_for: str = "", **more: str) -> Statement:
    return Statement(id, f"Says {id} | so.", scope, waits_for, **more)


def test_problems_name_unknown_markers_and_core_statements_without_a_test() -> None:
    chapters = [Area("A", [statement("CP-1"), statement("CP-2", "later", "rpc")])]
    found = conformance.problems(chapters, {"CP-9": [Shown("tests/test_x.py", "test_a")]})
    assert [problem.split()[0] for problem in found] == ["CP-9", "CP-1"]


def test_a_report_reads_back_what_was_rendered() -> None:
    tests = {"CP-1": [Shown("tests/a.py", "T.test_a"), Shown("tests/a.py", "test_b"), Shown("tests/b.py", "")]}
    chapters = [Area("A", [statement("CP-1"), statement("CP-2", "later", "rpc")])]
    rows = conformance.read_report(conformance.render(chapters, tests, {}))
    assert rows == {"CP-1": ("Says CP-1 | so.", tests["CP-1"]), "CP-2": ("Says CP-2 | so.", [])}


@pytest.mark.parametrize(
    ("outcomes", "result"),
    [
        (["passed", "passed"], "shown; the rest waits for rpc"),
        (["passed", "failed"], "**NOT SHOWN** (failed)"),
        (["passed", "skipped"], "**NOT SHOWN** (skipped)"),
        (["passed"], "not run; the rest waits for rpc"),
    ],
)
def test_the_worst_of_its_tests_is_a_statements_result(outcomes: list[str], result: str) -> None:
    tests = [Shown("tests/a.py", "test_a"), Shown("tests/a.py", "test_b")]
    text = conformance.render(
        [Area("A", [statement("CP-1", waits_for="rpc")])],
        {"CP-1": tests},
        dict(zip(tests, outcomes, strict=False)),
    )
    assert f"| {result} |" in text


@pytest.mark.parametrize(
    ("one", "result"),
    [
        (statement("CP-1"), "**NOT SHOWN**"),
        (statement("CP-1", "later", "nats"), "waits for nats"),
        (statement("CP-1", "later", "nats", decision="No.", reason="Why."), "waits for nats<br>decided: No. Why."),
    ],
)
def test_a_statement_without_tests_waits_or_is_not_shown(one: Statement, result: str) -> None:
    assert f"| {result} |" in conformance.render([Area("A", [one])], {}, {})


def test_markers_are_found_on_functions_classes_modules_and_parameters(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text(
        """
pytestmark = pytest.mark.statement("CP-1")

@pytest.mark.statement("CP-2", "CP-3")
class XTests:
    @pytest.mark.parametrize("n", [pytest.param(1, marks=pytest.mark.statement("CP-4"))])
    @pytest.mark.statement("CP-5")
    async def test_a(self, n): ...

Machine = Rules.TestCase
Machine.pytestmark = [pytest.mark.statement("CP-6")]
"""
    )
    assert conformance.shown_by(tmp_path) == {
        "CP-1": [Shown("tests/test_x.py", "")],
        "CP-2": [Shown("tests/test_x.py", "XTests")],
        "CP-3": [Shown("tests/test_x.py", "XTests")],
        "CP-4": [Shown("tests/test_x.py", "XTests.test_a")],
        "CP-5": [Shown("tests/test_x.py", "XTests.test_a")],
        "CP-6": [Shown("tests/test_x.py", "Machine")],
    }


def test_a_marker_whose_number_is_computed_is_refused(tmp_path: Path) -> None:
    (tmp_path / "tests").mkdir()
    (tmp_path / "tests" / "test_x.py").write_text("pytestmark = pytest.mark.statement(*IDS)\n")
    with pytest.raises(ValueError, match=r"tests/test_x\.py:1"):
        list(conformance.markers(tmp_path))


@pytest.mark.parametrize(
    ("entry", "complaint"),
    [
        ("{id: CP-1, says: x, scope: soon}", "not 'core' or 'later'"),
        ("{id: CP-1, says: x, scope: later}", "what it waits for"),
        ("{id: CP-1, says: x, scope: core, decision: y}", "has a reason"),
        ("{id: CP-1, says: x, scope: core, note: y}", "unknown fields"),
        ("{id: CP-1, says: x, scope: core}, {id: CP-1, says: x, scope: core}", "twice"),
    ],
)
def test_a_faulty_statement_is_named(tmp_path: Path, entry: str, complaint: str) -> None:
    path = tmp_path / "statements.yml"
    path.write_text(f"- {{area: A, statements: [{entry}]}}\n")
    with pytest.raises(ValueError, match=f"CP-1.*{complaint}"):
        conformance.areas(path)
