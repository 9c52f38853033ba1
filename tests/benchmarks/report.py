"""The report: Markdown tables of medians, ratios to the baseline, and the targets beside what was reached."""

from __future__ import annotations

from collections.abc import Sequence

from tests.benchmarks.runner import BARE, Result, Results
from tests.benchmarks.scenarios import Scenario

__all__ = ["render"]

HEADINGS = {
    "cpu_us": "CPU, us",
    "cut_us": "CPU of the cut, us",
    "p50_ms": "p50, ms",
    "p99_ms": "p99, ms",
    "per_second": "per second",
    "published": "published per second",
    "publish_p50_ms": "publish p50, ms",
    "publish_p95_ms": "publish p95, ms",
    "history_p95_ms": "history p95, ms",
    "rss_kb": "RSS, KB each",
    "idle_percent": "idle CPU, %",
    "client_percent": "client CPU, %",
}
COMPARED = ("cpu_us", "p99_ms", "per_second", "rss_kb")
ABSOLUTE = ("rss_kb",)


def render(
    chosen: Sequence[Scenario],
    results: Results,
    machine: dict[str, str],
    product: str,
    repetitions: int,
    command: str,
    quick: bool,
) -> str:
    """The report as Markdown. *product* is the name of the server that the targets are for."""
    lines = ["# Benchmarks", ""]
    if quick:
        lines += ["**A quick run: short and few repetitions, good for finding faults, not for quoting.**", ""]
    lines += [
        f"Written by `{command}`; see [how to run and read it](benchmarking.md). Each figure is the median of "
        f"{repetitions} runs, servers alternating. In parentheses: the ratio to `stock`, the plain Autobahn server, "
        "where no other baseline is named.",
        "",
        "| | |",
        "|---|---|",
        *(f"| {name} | {text} |" for name, text in machine.items()),
        "",
        "## Targets",
        "",
        *_targets(chosen, results, product),
    ]
    for scenario in chosen:
        lines += ["", f"## {scenario.name}: {scenario.title}", ""]
        if scenario.baseline != "stock":
            lines += [f"In parentheses: the ratio to `{scenario.baseline}`.", ""]
        lines += _table(scenario, results[scenario.name])
        for name, result in results[scenario.name].items():
            for failure in result.failures:
                lines += ["", f"- `{name}` failed: {' '.join(failure.split())[:600]}"]
    return "\n".join(lines) + "\n"


def _targets(chosen: Sequence[Scenario], results: Results, product: str) -> list[str]:
    lines = ["| Scenario | Figure | Target | Reached | Met |", "|---|---|---|---|---|"]
    for scenario in chosen:
        row = results[scenario.name]
        base = BARE if scenario.bare_handshake else scenario.baseline
        for figure, target in scenario.targets.items():
            value = _median(row, product, figure)
            if figure in ABSOLUTE:
                wanted, reached, text = f"<= {target:g}", value, _number(value)
            else:
                wanted = f"<= {target:g}x {base}"
                reached = _ratio(value, _median(row, base, figure))
                text = "-" if reached is None else f"{reached:.3f}x ({_number(value)})"
            met = "-" if reached is None else "yes" if reached <= target else "**no**"
            lines.append(f"| {scenario.name} | {HEADINGS[figure]} | {wanted} | {text} | {met} |")
    return lines if len(lines) > 2 else ["None of the scenarios that were run has a target."]


def _table(scenario: Scenario, row: dict[str, Result]) -> list[str]:
    if not row:
        return ["Not run: no server that was chosen can do this."]
    lines = [
        "| Server | " + " | ".join(HEADINGS[figure] for figure in scenario.figures) + " |",
        "|---" * (len(scenario.figures) + 1) + "|",
    ]
    base = scenario.baseline
    for name, result in row.items():
        cells = []
        for figure in scenario.figures:
            value = result.median(figure)
            text = "failed" if result.failures else _number(value)
            ratio = _ratio(value, _median(row, base, figure)) if figure in COMPARED and name != base else None
            cells.append(text if ratio is None else f"{text} ({ratio:.2f}x)")
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    return lines


def _median(row: dict[str, Result], name: str, figure: str) -> float | None:
    return row[name].median(figure) if name in row else None


def _ratio(value: float | None, base: float | None) -> float | None:
    return value / base if value is not None and base else None


def _number(value: float | None) -> str:
    if value is None:
        return "-"
    if value >= 1000:
        return f"{value:,.0f}"
    return f"{value:.1f}" if value >= 10 else f"{value:.2f}"
