"""Runs every scenario on every server in turn, several times over, and keeps all figures."""

from __future__ import annotations

import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial

from tests.benchmarks import scenarios
from tests.benchmarks.processes import RunFailed, ServerKind, running
from tests.benchmarks.scenarios import Figures, Scenario, Size

__all__ = ["BARE", "Result", "run_all"]

BARE = "stock, bare handshake"


@dataclass
class Result:
    """What one server did in one scenario."""

    runs: list[Figures] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)

    def median(self, figure: str) -> float | None:
        """The median over the repetitions; None if any of them failed."""
        if self.failures or not self.runs:
            return None
        return statistics.median(run[figure] for run in self.runs)


Results = dict[str, dict[str, Result]]


def run_all(chosen: Sequence[Scenario], kinds: Sequence[ServerKind], size: Size, repetitions: int) -> Results:
    """The results by scenario and server. The servers alternate; each run has a server process of its own."""
    results: Results = {}
    for scenario in chosen:
        row = results[scenario.name] = {}
        entrants = _entrants(scenario, kinds)
        for repetition in range(repetitions):
            for entrant, alternative in entrants:
                result = row.setdefault(entrant.name, Result())
                started = time.monotonic()
                try:
                    with running(entrant) as server:
                        result.runs.append(alternative.run(server, size))
                    outcome = "  ".join(f"{name} {value:.2f}" for name, value in result.runs[-1].items())
                except RunFailed as failure:
                    result.failures.append(str(failure))
                    outcome = f"FAILED: {failure}"
                took = time.monotonic() - started
                print(f"{scenario.name} {repetition + 1}/{repetitions} {entrant.name}: {outcome}  ({took:.0f} s)")
                sys.stdout.flush()
    return results


def _entrants(scenario: Scenario, kinds: Sequence[ServerKind]) -> list[tuple[ServerKind, Scenario]]:
    kinds = [kind for kind in kinds if kind.baseline == scenario.baseline]
    entrants = [(kind, scenario) for kind in kinds if kind.sessions or not scenario.needs_sessions]
    if scenario.bare_handshake:
        bare = dataclasses.replace(scenario, run=partial(scenarios.connect, bare=True))
        for kind in kinds:
            if kind.name == "stock":
                entrants.append((dataclasses.replace(kind, name=BARE), bare))
    return entrants
