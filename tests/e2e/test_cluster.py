"""Nodes that share a broker under faults: every client has everything, once and in order, from whichever node."""

from __future__ import annotations

import pytest

from tests.e2e.cluster_run import Plan, clean, run

pytestmark = pytest.mark.e2e


@pytest.mark.statement("P1", "P2", "P3", "P5", "P6", "BR-35", "BR-51", "BR-56", "BR-57", "BR-25", "CO-49", "BR-77")
@pytest.mark.parametrize(
    ("fault", "kind"),
    [("node", "valkey"), ("failover", "redis")],
    ids=["node", "failover"],
)
def test_clients_miss_nothing_whatever_fails(fault: str, kind: str) -> None:
    plan = Plan(nodes=3, clients=40, seconds=8, rate=60, faults={fault: (0.3,)}, broker=kind)
    report = run(plan)
    assert clean(report, plan), f"{report.counts}\n{report}"
    assert report.counts["resumes"] >= 20
    assert report.counts["replayed"] > 0


@pytest.mark.statement("BR-35", "BR-40", "BR-51", "BR-56", "BR-57", "BR-64", "CP-150", "CP-151", "P3", "F52", "F56")
def test_clients_miss_nothing_whatever_becomes_of_the_nats_servers() -> None:
    faults = {"rolling": (0.1,), "leader": (0.5,), "node": (0.7,)}
    plan = Plan(nodes=3, clients=40, seconds=20, rate=60, faults=faults, broker="nats")
    report = run(plan)
    assert clean(report, plan), f"{report.counts}\n{report}"
    assert report.counts["resumes"] >= 50
    assert report.counts["replayed"] > 0


@pytest.mark.statement("BR-67", "CP-151", "P3", "F40", "F54")
def test_clients_are_told_when_an_operator_deletes_the_log() -> None:
    plan = Plan(nodes=3, clients=30, seconds=6, rate=60, faults={"deleted": (0.4,)}, broker="nats")
    report = run(plan)
    assert clean(report, plan), f"{report.counts}\n{report}"
    assert report.counts["refusals"] > 0
    assert report.counts["resumes"] > 0
