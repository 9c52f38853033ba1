"""The machine and the versions that figures were taken with."""

from __future__ import annotations

import os
import platform
import subprocess
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from tests.benchmarks.processes import CPUS, ROOT

__all__ = ["describe"]


def describe() -> dict[str, str]:
    """What the report says about where it was made."""
    return {
        "Date": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        "CPU": f"{_cpu_model()}, {os.cpu_count()} cores; "
        f"server on CPU {CPUS.server}, load client on {CPUS.client}, publisher on {CPUS.publisher}",
        "Memory": f"{os.sysconf('SC_PAGE_SIZE') * os.sysconf('SC_PHYS_PAGES') / 2**30:.0f} GiB",
        "System": f"{platform.system()} {platform.release()}, loopback",
        "Python": f"{platform.python_implementation()} {platform.python_version()}",
        "Packages": ", ".join(
            f"{name} {_version(name)}" for name in ("Twisted", "Autobahn", "orjson", "grpcio", "protobuf")
        ),
        "anycable-tx": f"{_version('anycable-tx')}{_commit()}",
    }


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "(not installed)"


def _commit() -> str:
    command = ["git", "describe", "--always", "--dirty"]
    answer = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    return f" at {answer.stdout.strip()}" if answer.returncode == 0 else ""
