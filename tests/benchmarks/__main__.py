"""``python -m tests.benchmarks``: anycable-tx and the stock server side by side."""

from __future__ import annotations

import argparse
import json
import os
import resource
import shlex
import signal
import sys
from dataclasses import asdict
from pathlib import Path

from tests.benchmarks import machine, report
from tests.benchmarks.processes import CPUS, ROOT, ServerKind, brokers, product, rpc, stock, watched, workers
from tests.benchmarks.runner import run_all
from tests.benchmarks.scenarios import SCENARIOS, Size

PRODUCT = "anycable-tx"
QUICK = Size(seconds=3.0, bursts=3, idle=1000, connects=1000, sessions=300)


def _parse() -> argparse.Namespace:
    names = [scenario.name for scenario in SCENARIOS]
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks", description=__doc__)
    parser.add_argument("--quick", action="store_true", help="one short run of the smaller scenarios")
    parser.add_argument("--only", action="append", metavar="NAME", choices=names, help=f"one of {', '.join(names)}")
    parser.add_argument("--repetitions", type=int, metavar="N", help="runs of each server (default 3; quick: 1)")
    parser.add_argument(
        "--server",
        action="append",
        metavar="NAME",
        help="run only this one (repeatable): stock, anycable-tx, 'anycable-tx, fast path off', 'anycable-tx, "
        "metrics on' (which runs only when it is named), and for the scenario rpc: 'in process', grpc, http",
    )
    parser.add_argument(
        "--add-server",
        action="append",
        default=[],
        metavar="NAME=COMMAND",
        help="one more server; {port} and {http_port} in COMMAND are replaced",
    )
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="where the report goes (a full run: docs/benchmarks.md)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="where the figures of every single run go")
    return parser.parse_args()


def _servers(arguments: argparse.Namespace) -> list[ServerKind]:
    kinds = [
        stock(),
        product(PRODUCT),
        product(f"{PRODUCT}, fast path off", "--fast_path=false"),
        watched(f"{PRODUCT}, metrics on"),
        *rpc(),
        *brokers(),
        *workers(),
    ]
    if arguments.server:
        unknown = set(arguments.server) - {kind.name for kind in kinds}
        if unknown:
            raise SystemExit(f"no such server: {', '.join(sorted(unknown))}")
        kinds = [kind for kind in kinds if kind.name in arguments.server]
    else:
        kinds = [kind for kind in kinds if not kind.extra]
    return kinds + [_added(text) for text in arguments.add_server]


def _added(text: str) -> ServerKind:
    name, found, command = text.partition("=")
    if not found:
        raise SystemExit(f"--add-server takes NAME=COMMAND, not {text!r}")
    words = shlex.split(command)
    return ServerKind(name, lambda port, http: [word.format(port=port, http_port=http) for word in words])


def _raise_file_limit(wanted: int) -> None:
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        raise SystemExit(f"{wanted} open files are needed, and the hard limit is {hard} (see ulimit -Hn)")
    resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _stop(number: int, frame: object) -> None:
    raise SystemExit(128 + number)


def main() -> None:
    """Run what was asked for, print the report, and write it where it belongs. Exits 1 if any run failed."""
    arguments = _parse()
    signal.signal(signal.SIGTERM, _stop)
    os.sched_setaffinity(0, {CPUS.publisher})
    size = QUICK if arguments.quick else Size()
    repetitions = arguments.repetitions or (1 if arguments.quick else 3)
    if arguments.only:
        chosen = [scenario for scenario in SCENARIOS if scenario.name in arguments.only]
    else:
        chosen = [scenario for scenario in SCENARIOS if scenario.in_quick or not arguments.quick]
    _raise_file_limit(6000)
    results = run_all(chosen, _servers(arguments), size, repetitions)
    command = shlex.join(["python", "-m", "tests.benchmarks", *sys.argv[1:]])
    text = report.render(chosen, results, machine.describe(), PRODUCT, repetitions, command, arguments.quick)
    print("\n" + text)
    output = arguments.output
    if output is None and not (arguments.quick or arguments.only or arguments.server):
        output = ROOT / "docs" / "benchmarks.md"
    if output is not None:
        output.write_text(text)
    if arguments.json is not None:
        rows = {name: {server: asdict(result) for server, result in row.items()} for name, row in results.items()}
        arguments.json.write_text(json.dumps(rows, indent=2) + "\n")
    if any(result.failures for row in results.values() for result in row.values()):
        sys.exit(1)


if __name__ == "__main__":
    main()
