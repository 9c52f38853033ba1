"""The description of the REST API and a running server say the same."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from anycable_tx.api.pages import DEFAULT_LIMIT, MAX_LIMIT
from anycable_tx.config.secrets import API, derive_key
from anycable_tx.testing.processes import HOST, server
from tests.api.support import World

ROOT = Path(__file__).resolve().parent.parent.parent
DESCRIPTION = ROOT / "docs" / "reference" / "openapi.yaml"
CONFIGURATION = Path(__file__).with_name("schemathesis.toml")


@pytest.mark.e2e
def test_a_server_answers_as_its_description_says(tmp_path: Path) -> None:
    """Examples, boundaries and random requests, right and wrong ones; see the configuration."""
    with server("--presets=broker", "--secret=s") as running:
        done = subprocess.run(
            [
                *(sys.executable, "-m", "schemathesis.cli", "--config-file", str(CONFIGURATION), "run"),
                *(str(DESCRIPTION), "--url", f"http://{HOST}:{running.port}/api", "--no-color"),
                *("-H", f"Authorization: Bearer {derive_key('s', API)}"),
            ],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            timeout=100,
        )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "Tested: 3" in done.stdout


def test_every_path_is_described_and_no_other(world) -> None:
    described = yaml.safe_load(DESCRIPTION.read_text("utf-8"))["paths"]
    it: World = world()
    assert set(described) == set(it.server.api._endpoints)
    for path, endpoint in it.server.api._endpoints.items():
        methods = {method.decode().lower() for method in endpoint.methods} - {"head"}
        assert set(described[path]) - {"parameters"} == methods


def test_the_bounds_of_a_page_are_the_described_ones() -> None:
    parameters = yaml.safe_load(DESCRIPTION.read_text("utf-8"))["paths"]["/streams/{stream}/history"]["get"]
    [limit] = [p["schema"] for p in parameters["parameters"] if p["name"] == "limit"]
    assert (limit["default"], limit["maximum"]) == (DEFAULT_LIMIT, MAX_LIMIT)
