"""Somebody else's broker: installed like any package, and then as good as a built-in one."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path

import pytest

import anycable_tx
from anycable_tx.testing.client import CableClient
from tests.e2e.process import TWISTD, Process, ended, post

pytestmark = pytest.mark.e2e

EXAMPLE = Path(anycable_tx.__file__).parent.parent / "docs" / "examples" / "acme_broker"
OPEN = ("--public", "--presets=none")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """An environment in which the example provider is installed, outside of this checkout."""
    target = tmp_path_factory.mktemp("site-packages")
    pip = [sys.executable, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    options = ["--no-deps", "--no-index", "--no-build-isolation", "--target", str(target)]
    subprocess.run([*pip, *options, str(EXAMPLE)], check=True, timeout=60)
    files = {path.relative_to(target).as_posix() for path in target.rglob("*.py")}
    assert files == {"acme_broker.py", "twisted/plugins/acme_broker_plugin.py"}
    return {"PYTHONPATH": str(target)}


def test_without_the_package_nobody_knows_it(tmp_path: Path) -> None:
    done = ended(*TWISTD, "-n", "anycable", *OPEN, "--broker=acme", cwd=tmp_path)
    assert done.stderr == "anycable: broker: there is no broker named 'acme'; found: memory, nats, none, redis\n"
    assert "acme" not in ended(*TWISTD, "anycable", "--help", cwd=tmp_path).stdout


@pytest.mark.statement("BR-80")
def test_it_is_listed_and_its_option_is_in_the_help(installed: dict[str, str], tmp_path: Path) -> None:
    done = ended(*TWISTD, "-n", "anycable", *OPEN, "--broker=acne", cwd=tmp_path, env=installed)
    assert done.returncode == 1
    found = "acme, memory, nats, none, redis"
    assert done.stderr == f"anycable: broker: there is no broker named 'acne'; found: {found}\n"
    help = ended(*TWISTD, "anycable", "--help", cwd=tmp_path, env=installed).stdout
    assert "--acme_label=" in help
    assert "shown when the server starts" in help


@pytest.mark.parametrize("source", ["command line", "environment", "file"])
def test_its_option_is_taken_from_everywhere_and_mistakes_are_found(
    source: str, installed: dict[str, str], tmp_path: Path
) -> None:
    options, env = [*OPEN, "--broker=acme", "--print_config"], dict(installed)
    if source == "command line":
        options.append("--acme_label=hello")
    elif source == "environment":
        env["ANYCABLE_ACME_LABEL"] = "hello"
    else:
        (tmp_path / "acme.yml").write_text("strict: true\nacme: {label: hello}\n")
        options.append("--config_path=acme.yml")
        (tmp_path / "wrong.yml").write_text("strict: true\nacme: {lable: hello}\n")
        wrong = ended(*TWISTD, "anycable", *OPEN, "--config_path=wrong.yml", cwd=tmp_path, env=env)
        assert wrong.returncode == 1
        assert "there is no key acme.lable" in wrong.stderr
    printed = ended(*TWISTD, "anycable", *options, cwd=tmp_path, env=env)
    assert 'acme:\n  label: "hello"' in printed.stdout


@pytest.mark.statement("CP-90")
def test_it_is_used_and_a_client_resumes_through_it(installed: dict[str, str], tmp_path: Path) -> None:
    (tmp_path / "acme.yml").write_text("strict: true\nbroker: {adapter: acme}\nacme: {label: hello}\n")
    with Process(*OPEN, "--config_path=acme.yml", cwd=tmp_path, env=installed) as it:
        it.ready()
        assert " INF Using the Acme broker hello: Using in-memory broker (" in it.out

        async def run() -> None:
            async with CableClient(it.url) as client:
                identifier = await client.subscribe(stream="s")
                assert post(it.broadcast_port, '{"stream":"s","data":"1"}') == 201
                assert await client.message(identifier) == 1
                await client.cut()
                assert post(it.broadcast_port, '{"stream":"s","data":"2"}') == 201
                assert await client.resume()
                assert await client.messages(identifier, 1) == [2]
                await client.expect(type="confirm_history")
                await client.expect_silence()

        asyncio.run(run())
        it.stop()
