"""The conformance report: which numbered statements there are, which tests show them, with what result.

``python -m pytest --conformance=docs/conformance.md`` runs the tests and writes the report. The statements are
in docs/statements.yml; a test says what it shows with ``@pytest.mark.statement("CP-1", "BR-2")``. Markers are
found in the source, not in a run, so the set of tests is the same whatever part of the suite was run.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import yaml

__all__ = [
    "REPORT",
    "ROOT",
    "Shown",
    "Statement",
    "areas",
    "markers",
    "problems",
    "read_report",
    "render",
    "shown_by",
]

ROOT = Path(__file__).resolve().parent.parent
STATEMENTS = ROOT / "docs" / "statements.yml"
REPORT = ROOT / "docs" / "conformance.md"
#: Where markers are looked for: the tests, and the suites that are shipped for other people's providers.
SOURCES = ("tests", "anycable_tx/testing")

_FIELDS = {"id", "says", "scope", "waits_for", "decision", "reason"}


@dataclass(frozen=True)
class Statement:
    """One numbered statement. ``waits_for`` names the part that it (or, for a core one, its rest) waits for."""

    id: str
    says: str
    scope: str
    waits_for: str = ""
    decision: str = ""
    reason: str = ""


class Shown(NamedTuple):
    """A test that carries a statement's number: its file, relative to the root, and its name in there."""

    path: str
    name: str


@dataclass
class Area:
    """A chapter of the report."""

    name: str
    statements: list[Statement] = field(default_factory=list)


def areas(path: Path = STATEMENTS) -> list[Area]:
    """The statements by area. Raises ValueError for an entry that is incomplete, unknown or given twice."""
    found: list[Area] = []
    seen: set[str] = set()
    for chapter in yaml.safe_load(path.read_text("utf-8")):
        area = Area(chapter["area"])
        for entry in chapter["statements"]:
            unknown = set(entry) - _FIELDS
            if unknown:
                raise ValueError(f"{entry['id']}: unknown fields {sorted(unknown)}")
            statement = Statement(**entry)
            if statement.id in seen:
                raise ValueError(f"{statement.id} is there twice")
            if statement.scope not in ("core", "later"):
                raise ValueError(f"{statement.id}: scope is {statement.scope!r}, not 'core' or 'later'")
            if statement.scope == "later" and not statement.waits_for:
                raise ValueError(f"{statement.id}: a later statement says what it waits for")
            if bool(statement.decision) != bool(statement.reason):
                raise ValueError(f"{statement.id}: a decision has a reason")
            seen.add(statement.id)
            area.statements.append(statement)
        found.append(area)
    return found


def _is_marker(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "pytest.mark.statement"


def _marked(body: Iterable[ast.AST], scope: tuple[str, ...]) -> Iterator[tuple[str, ast.Call]]:
    """Each marker with the dotted name of what it marks: a function, a class, or '' for the module."""
    for node in body:
        if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
            inner = (*scope, node.name)
            yield from _marked(node.decorator_list, inner)
            yield from _marked(node.body, inner)
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Attribute):
            owner = ast.unparse(node.targets[0].value)  # Case.pytestmark = ...
            yield from _marked([node.value], (*scope, owner))
        elif _is_marker(node):
            assert isinstance(node, ast.Call)
            yield ".".join(scope), node
        else:
            yield from _marked(ast.iter_child_nodes(node), scope)


def markers(root: Path = ROOT) -> Iterator[tuple[str, Shown]]:
    """Every (statement id, test) the sources declare. Raises ValueError for an id that is not a plain string."""
    for source in SOURCES:
        for path in sorted((root / source).rglob("*.py")):
            relative = path.relative_to(root).as_posix()
            if "node_modules" in relative:
                continue
            text = path.read_text("utf-8")
            if "mark.statement" not in text:
                continue
            for name, call in _marked(ast.parse(text).body, ()):
                for argument in call.args:
                    if not (isinstance(argument, ast.Constant) and isinstance(argument.value, str)):
                        raise ValueError(f"{relative}:{call.lineno}: statement ids are plain strings")
                    yield argument.value, Shown(relative, name)


def shown_by(root: Path = ROOT) -> dict[str, list[Shown]]:
    """Statement id -> the tests that show it, in the order of their files."""
    found: dict[str, list[Shown]] = {}
    for id, shown in markers(root):
        tests = found.setdefault(id, [])
        if shown not in tests:
            tests.append(shown)
    return {id: sorted(tests) for id, tests in found.items()}


def problems(chapters: list[Area], tests: dict[str, list[Shown]]) -> list[str]:
    """What is wrong: markers that name no statement, core statements that no test shows."""
    known = {s.id: s for area in chapters for s in area.statements}
    wrong = [f"{id} is marked in {tests[id][0].path} but is not a statement" for id in tests if id not in known]
    wrong += [f"{s.id} has no test: {s.says}" for s in known.values() if s.scope == "core" and s.id not in tests]
    return wrong


def _result(statement: Statement, outcome: str, has_tests: bool) -> str:
    if not has_tests:
        result = f"waits for {statement.waits_for}" if statement.scope == "later" else "**NOT SHOWN**"
    elif outcome in ("passed", ""):
        result = "shown" if outcome else "not run"
        if statement.waits_for:
            result += f"; the rest waits for {statement.waits_for}"
    else:
        result = f"**NOT SHOWN** ({outcome})"
    if statement.decision:
        result += f"<br>decided: {statement.decision} {statement.reason}"
    return result


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def render(chapters: list[Area], tests: dict[str, list[Shown]], outcomes: dict[Shown, str]) -> str:
    """The report as Markdown. *outcomes* maps a test to 'passed', 'failed' or 'skipped'; others were not run."""
    worst = ("failed", "skipped", "", "passed")
    lines = [
        "# Conformance",
        "",
        "Every numbered statement about the server's behaviour, the tests that show it, and their result. A",
        "statement *waits* when it belongs to a part that does not exist yet.",
        "",
        "This page is made by `pytest --conformance=docs/conformance.md` from `docs/statements.yml` and the",
        "markers in the tests.",
        "",
    ]
    every = [s for area in chapters for s in area.statements]
    shown = [s for s in every if s.id in tests and {outcomes.get(t, "") for t in tests[s.id]} == {"passed"}]
    waiting = [s for s in every if s.scope == "later" and s.id not in tests]
    lines += [f"{len(shown)} of {len(every)} statements are shown, {len(waiting)} wait.", ""]
    for area in chapters:
        lines += [f"## {area.name}", "", "| Statement | Says | Tests | Result |", "| --- | --- | --- | --- |"]
        for statement in area.statements:
            own = tests.get(statement.id, [])
            outcome = min((outcomes.get(t, "") for t in own), key=worst.index, default="")
            cells = [_cell(statement.says), _links(own), _cell(_result(statement, outcome, bool(own)))]
            lines.append(f"| {statement.id} | {' | '.join(cells)} |")
        lines.append("")
    return "\n".join(lines)


def _links(tests: list[Shown]) -> str:
    files: dict[str, list[str]] = {}
    for test in tests:
        files.setdefault(test.path, []).append(test.name)
    return "<br>".join(
        f"[{path}](../{path}) " + " ".join(f"`{name or 'all'}`" for name in names) for path, names in files.items()
    )


_ROW = re.compile(r"^\| ([A-Z]+-?\d+) \| (.*?) (?<!\\)\| (.*?) ?\| ", re.M)
_FILE = re.compile(r"\[([^\]]+)\]\([^)]+\)((?: `[^`]+`)*)")


def read_report(text: str) -> dict[str, tuple[str, list[Shown]]]:
    """What a report says: statement id -> (its sentence, its tests)."""
    rows: dict[str, tuple[str, list[Shown]]] = {}
    for id, says, tests in _ROW.findall(text):
        shown = [
            Shown(path, "" if name == "all" else name)
            for path, names in _FILE.findall(tests)
            for name in re.findall(r"`([^`]+)`", names)
        ]
        rows[id] = (says.replace("\\|", "|"), shown)
    return rows
