"""anycable_tx.metrics, and that the code counts what is declared, as it is declared."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from twisted.internet.task import Clock

import anycable_tx
from anycable_tx.metrics import COUNTERS, GAUGES, MAX_REASONS, OPTIONAL, REASONED, Metrics, aged
from anycable_tx.monitoring.names import condition

PACKAGE = Path(anycable_tx.__file__).parent


def calls(method: str, owners: tuple[str, ...] = ("metrics", "_metrics")) -> Iterator[tuple[str, ast.Call]]:
    """The calls ``....<owner>.<method>(...)`` in the package, with where they are."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr == method:
                owner = node.func.value
                name = owner.attr if isinstance(owner, ast.Attribute) else getattr(owner, "id", "")
                if name in owners:
                    yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def names(method: str) -> Iterator[tuple[str, str, ast.Call]]:
    """Those calls whose first argument is written out; others take a name that is written out elsewhere."""
    for place, call in calls(method):
        if isinstance(call.args[0], ast.Constant):
            yield place, call.args[0].value, call


def written_out() -> set[str]:
    """All texts in the package, but for the declarations'."""
    found: set[str] = set()
    for path in PACKAGE.rglob("*.py"):
        if path not in (PACKAGE / "metrics.py", PACKAGE / "monitoring" / "names.py"):
            tree = ast.walk(ast.parse(path.read_text("utf-8")))
            found |= {node.value for node in tree if isinstance(node, ast.Constant) and isinstance(node.value, str)}
    return found


def test_what_is_counted_is_declared_and_says_a_reason_exactly_where_the_declaration_does() -> None:
    found = list(names("count"))
    assert len(found) > 100
    for place, name, call in found:
        assert name in COUNTERS, place
        given = len(call.args) > 2 or any(keyword.arg == "reason" for keyword in call.keywords)
        assert given == (name in REASONED), f"{place}: {name}"


def test_what_a_client_is_refused_has_a_counter_with_reasons() -> None:
    found = [(place, call.args[0]) for place, call in calls("refused", ("session",))]
    assert len(found) > 15
    for place, name in found:
        assert isinstance(name, ast.Constant), place
        assert name.value in REASONED, place


def test_what_is_declared_is_counted_or_read_somewhere() -> None:
    texts = written_out()
    assert [name for name in (*COUNTERS, *GAUGES) if name not in texts] == []


def test_the_parts_that_may_be_missing_are_announced_and_known() -> None:
    announced = {name for _, name, _ in names("has")}
    assert announced == set(OPTIONAL)
    for part in OPTIONAL:
        own = [name for name in COUNTERS if name.startswith(f"{part}_")]
        assert own, part
        assert all(condition(name) for name in own)


def test_a_name_that_is_not_declared_is_refused() -> None:
    metrics = Metrics()
    with pytest.raises(KeyError):
        metrics.count("anything_total")
    with pytest.raises(KeyError):
        metrics.gauge("anything_num", lambda: 0)
    with pytest.raises(ValueError, match="no part 'mqtt'; known: rpc,"):
        metrics.has("mqtt")
    assert "anything_total" not in metrics.counters()


def test_counters_begin_at_nothing_and_those_of_other_parts_are_not_there() -> None:
    metrics = Metrics()
    assert metrics.counters()["publications_total"] == {"": 0}
    assert metrics.counters()["failed_auths_total"] == {}
    assert not [name for name in metrics.counters() if name.startswith(("rpc_", "redis_", "nats_"))]
    metrics.has("rpc")
    assert metrics.counters()["rpc_call_total"] == {"": 0}
    metrics.count("redis_stalls_total", 3)
    assert metrics.counters()["redis_stalls_total"] == {"": 3}


def test_reasons_are_kept_apart_and_bounded() -> None:
    metrics = Metrics()
    for n in range(MAX_REASONS + 5):
        metrics.count("history_rejects_total", reason=f"r{n}")
    metrics.count("history_rejects_total", 2, "r1")
    reasons = metrics.counters()["history_rejects_total"]
    assert (reasons["r0"], reasons["r1"], reasons["other"]) == (1, 3, 5)
    assert metrics.value("history_rejects_total") == MAX_REASONS + 7


def test_the_other_reasons_can_be_counted_beyond_the_bound() -> None:
    metrics = Metrics()
    for n in range(3 * MAX_REASONS):
        metrics.count("history_rejects_total", reason=f"r{n}")
    assert len(metrics.counters()["history_rejects_total"]) == MAX_REASONS + 1
    assert metrics.value("history_rejects_total", "other") == 2 * MAX_REASONS


def test_gauges_are_read_when_asked_for_in_the_order_of_their_declaration() -> None:
    metrics = Metrics()
    values = {"mem_sys_bytes": 7, "clients_num": 1}
    for name in values:
        metrics.gauge(name, lambda name=name: values[name])
    values["clients_num"] = 2
    assert list(metrics.gauges().items()) == [("clients_num", 2), ("mem_sys_bytes", 7)]


def test_a_gauge_that_takes_work_is_asked_when_its_answer_is_old() -> None:
    clock = Clock()
    answers = iter(range(10))
    read = aged(lambda: next(answers), 5, clock.seconds)
    seen = [read(), read()]
    for step in (4.9, 0.1, 5):
        clock.advance(step)
        seen.append(read())
    assert seen == [0, 0, 0, 1, 2]


def test_at_an_age_of_nothing_a_gauge_is_always_asked() -> None:
    answers = iter(range(10))
    read = aged(lambda: next(answers), 0, Clock().seconds)
    assert [read(), read()] == [0, 1]
