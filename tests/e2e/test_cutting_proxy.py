"""Many clients, cut again and again under traffic, miss nothing and authenticate once."""

from __future__ import annotations

import pytest

from tests.e2e.cutting_run import Plan, clean, run

pytestmark = pytest.mark.e2e


@pytest.mark.statement("P1", "P2", "P3", "P5", "CP-90", "CP-103", "CP-106", "CP-56", "CP-77")
@pytest.mark.parametrize("restart", [False, True], ids=["one server", "restarted from its snapshot"])
def test_cut_clients_resume_without_authenticating_and_miss_nothing(restart: bool) -> None:
    report = run(Plan(clients=40, seconds=10, rate=50, streams=10, restart=restart))
    assert clean(report), f"{report.counts}\n{report}"
    assert report.counts["resumes"] >= 40 * 3
    assert report.counts["replayed"] > 0
    assert report.counts["clients"] == 40


@pytest.mark.statement("CP-105", "CP-96", "RA-38")
@pytest.mark.parametrize(
    ("rpc", "restart"), [("http", False), ("grpc", True)], ids=["one server", "restarted from its snapshot"]
)
def test_for_each_of_them_a_backend_hears_of_one_beginning_and_one_end(rpc: str, restart: bool) -> None:
    report = run(Plan(clients=30, seconds=8, rate=30, streams=10, rpc=rpc, restart=restart))
    assert clean(report), f"{report.counts}\n{report}"
    assert report.counts["resumes"] >= 30 * 2
    assert report.counts["connects"] == report.counts["disconnects"] == 30
