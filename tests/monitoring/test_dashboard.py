"""The dashboard that is shipped shows metrics that exist, in ways that suit them."""

from __future__ import annotations

import json
import re
from itertools import combinations
from pathlib import Path
from typing import Any

import anycable_tx
from anycable_tx.metrics import COUNTERS, GAUGES
from anycable_tx.monitoring.names import names

DASHBOARD = json.loads((Path(anycable_tx.__file__).parent.parent / "conf/grafana-dashboard.json").read_text("utf-8"))
#: Full name -> is it a counter, and are its samples labelled with reasons?
SERVED = {full: (name in COUNTERS, labelled) for name in (*COUNTERS, *GAUGES) for full, labelled in names(name)}


def panels() -> list[dict[str, Any]]:
    return [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]


def targets() -> list[dict[str, str]]:
    return [target for panel in panels() for target in panel["targets"]]


def test_every_metric_exists() -> None:
    variables = [
        variable["query"]["query"] for variable in DASHBOARD["templating"]["list"] if variable["name"] == "instance"
    ]
    found = {m for text in (*variables, *(t["expr"] for t in targets())) for m in re.findall(r"anycable_\w+", text)}
    assert len(found) > 50
    assert found - set(SERVED) == set()


def test_counters_are_shown_by_their_rate_and_gauges_as_they_are() -> None:
    for target in targets():
        for metric in re.findall(r"anycable_\w+", target["expr"]):
            counted = re.search(rf"(rate|increase)\({metric}\{{", target["expr"]) is not None
            assert counted == SERVED[metric][0], target["expr"]


def test_reasons_are_shown_where_there_are_some() -> None:
    for target in targets():
        [metric] = re.findall(r"anycable_\w+", target["expr"])
        by_reason = "by (reason)" in target["expr"]
        assert by_reason == ("{{reason}}" in target["legendFormat"]), target["expr"]
        assert SERVED[metric][1] or not by_reason, target["expr"]


def test_each_node_can_be_looked_at_alone() -> None:
    for target in targets():
        assert '{instance=~"$instance"}' in target["expr"]
        assert target["datasource"] == {"type": "prometheus", "uid": "${datasource}"}


def test_panels_have_their_own_numbers_and_places() -> None:
    every = DASHBOARD["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    boxes = [(p["gridPos"]["x"], p["gridPos"]["y"], p["gridPos"]["w"], p["gridPos"]["h"]) for p in every]
    for x, _, width, _ in boxes:
        assert x + width <= 24
    for (x, y, w, h), (a, b, c, d) in combinations(boxes, 2):
        assert x + w <= a or a + c <= x or y + h <= b or b + d <= y
