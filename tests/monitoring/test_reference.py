"""The reference of metrics, and the names it is made from."""

from __future__ import annotations

from anycable_tx.metrics import COUNTERS, GAUGES, REASONED
from anycable_tx.monitoring.names import ABSENT, SHARED, names
from anycable_tx.monitoring.reference import reference
from tests.monitoring.test_prometheus import ALWAYS, RPC

#: All that the AnyCable server has, those of its commercial edition included.
THEIRS = {
    *ALWAYS,
    *RPC,
    *("goroutines_num", "grpc_active_conn_num", "rpc_capacity_num", "sse_clients_num"),
    *("heap_sys_bytes", "stack_sys_bytes", "heap_alloc_total", "heap_idle_bytes", "heap_released_bytes"),
    *("ds_requests_total", "ds_poll_requests_total", "ds_sse_requests_total"),
    *("ds_poll_clients_num", "ds_sse_clients_num", "long_poll_clients_num", "long_poll_stale_requests_total"),
}


def test_every_metric_of_the_anycable_server_is_here_or_its_absence_is_explained() -> None:
    assert SHARED | set(ABSENT) == THEIRS
    assert not SHARED & set(ABSENT)
    assert set(COUNTERS) | set(GAUGES) >= SHARED
    assert not set(ABSENT) & {*COUNTERS, *GAUGES}


def test_the_reference_has_every_metric_once_and_says_which_have_reasons() -> None:
    rows = [line.split(" | ") for line in reference().splitlines() if line.startswith("| `")]
    labels = {row[0].strip("| `"): row[2].strip() for row in rows if len(row) == 4}
    assert set(labels) == {*COUNTERS, *GAUGES}
    assert {name for name, label in labels.items() if label == "`reason`"} == REASONED
    assert len(rows) == len(labels) + len(ABSENT)


def test_no_two_metrics_are_served_under_one_name() -> None:
    full = [each for name in (*COUNTERS, *GAUGES) for each, _ in names(name)]
    assert len(set(full)) == len(full)
    assert all(name.endswith("_total") for name in COUNTERS)
    assert not any(name.endswith("_total") for name in GAUGES)


def test_every_meaning_is_one_line_without_a_full_stop() -> None:
    for name, meaning in (COUNTERS | GAUGES).items():
        assert meaning, name
        assert "\n" not in meaning, name
        assert not meaning.endswith("."), name
