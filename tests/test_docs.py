"""The documentation says what is true: commands, links, names, examples."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml
from twisted.scripts._twistd_unix import ServerOptions

from anycable_tx.config import files
from anycable_tx.config.schema import Schema, schema_with
from anycable_tx.metrics import COUNTERS, GAUGES
from anycable_tx.monitoring.names import names
from anycable_tx.monitoring.reference import reference as metrics_reference
from anycable_tx.providers import providers
from anycable_tx.testing.processes import server
from tests.e2e import node

ROOT = Path(__file__).resolve().parent.parent
EXAMPLES = ROOT / "docs" / "examples"
ACME = EXAMPLES / "acme_broker"
#: Made by programs, or about programs with options of their own.
GENERATED = {"docs/conformance.md", "docs/reference/options.md", "docs/benchmarks.md", "docs/benchmarking.md"}
#: Names of other people's code.
FOREIGN = {"history_not_found"}

PAGES = sorted(
    p
    for p in [*ROOT.glob("*.md"), *ROOT.joinpath("docs").rglob("*.md")]
    if not {"_build", "node_modules"} & set(p.relative_to(ROOT).parts)
)
WRITTEN = [p for p in PAGES if p.relative_to(ROOT).as_posix() not in GENERATED]


def ids(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def blocks(text: str, language: str) -> Iterator[str]:
    """The fenced code blocks of that language."""
    yield from re.findall(rf"^```{language}\n(.*?)^```", text, re.M | re.S)


def prose(text: str) -> str:
    """The page without its fenced code."""
    return re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)


def code_spans(text: str) -> list[str]:
    return re.findall(r"(?<!`)`([^`\n]+)`(?!`)", prose(text))


@pytest.fixture(scope="module")
def schema() -> Schema:
    """All options: built in, of the built-in providers, and of the example provider."""
    namespace: dict[str, object] = {}
    exec((ACME / "twisted" / "plugins" / "acme_broker_plugin.py").read_text("utf-8"), namespace)
    return schema_with([*providers(), namespace["acme_broker"]])  # type: ignore[list-item]


def test_the_command_that_runs_the_tests_is_the_one_that_ci_runs() -> None:
    command = (ROOT / ".ci" / "run").read_text("utf-8").strip().splitlines()[-1]
    assert "pytest" in command
    for page in ("README.md", "CONTRIBUTING.md"):
        assert command in (ROOT / page).read_text("utf-8").splitlines()


def test_ci_is_executable_and_names_no_host() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    assert "://" not in script.read_text("utf-8")


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub and MyST make them."""
    headings = re.findall(r"^#{1,6} (.+)$", prose(page.read_text("utf-8")), re.M)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_links_lead_somewhere(page: Path) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", prose(page.read_text("utf-8"))):
        if re.match(r"[a-z]+:", target):
            continue
        path, _, anchor = target.partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("page", WRITTEN, ids=ids)
def test_options_on_command_lines_exist(page: Path, schema: Schema) -> None:
    text = page.read_text("utf-8")
    typed = [span for span in code_spans(text) if span.startswith("--")]
    for block in blocks(text, "sh"):
        for line in block.replace("\\\n", " ").splitlines():
            typed += re.findall(r"(?<=\s)--\S+", line.partition("twistd")[2].partition(" anycable")[2])
    names = {match[1] for word in typed for match in re.finditer(r"(?:^|\s)--([A-Za-z][\w-]*)", word)}
    twistd = {name.rstrip("=") for name in ServerOptions().longOpt}
    unknown = {name for name in names if schema.flag(name) is None and name not in twistd}
    assert unknown <= {"conformance"}  # an option of pytest


@pytest.mark.parametrize("page", WRITTEN, ids=ids)
def test_configuration_in_examples_is_accepted(page: Path, schema: Schema, tmp_path: Path) -> None:
    for number, block in enumerate(blocks(page.read_text("utf-8"), "yaml")):
        file = tmp_path / f"{number}.yml"
        file.write_text(block)
        given, unknown = files.read_file(str(file), str(tmp_path), schema)
        assert given
        assert unknown == []


@pytest.mark.parametrize("page", WRITTEN, ids=ids)
def test_names_in_the_text_are_names_in_the_code(page: Path, source: str) -> None:
    words = {span for span in code_spans(page.read_text("utf-8")) if re.fullmatch(r"[a-z]+(?:_[a-z]+)+", span)}
    assert {word for word in words if not re.search(rf"\b{word}\b", source)} <= FOREIGN


@pytest.fixture(scope="module")
def source() -> str:
    """The package's own text, and the names of its modules."""
    modules = [*ROOT.joinpath("anycable_tx").rglob("*.py"), *ROOT.joinpath("twisted").rglob("*.py")]
    return "\n".join(f"{module.stem}\n{module.read_text('utf-8')}" for module in modules)


def test_the_reference_of_metrics_is_up_to_date() -> None:
    committed = (ROOT / "docs" / "reference" / "metrics.md").read_text("utf-8")
    assert committed == metrics_reference(), (
        "run: python -m anycable_tx.monitoring.reference > docs/reference/metrics.md"
    )


@pytest.mark.parametrize("page", PAGES, ids=ids)
def test_metrics_that_are_named_are_served(page: Path) -> None:
    served = {full for name in (*COUNTERS, *GAUGES) for full, _ in names(name)}
    named = set(re.findall(r"\banycable_(?:go|tx)_[a-z_]+_(?:total|num|bytes|ms|percent)\b", page.read_text("utf-8")))
    assert named - served == set()


@pytest.mark.parametrize("page", WRITTEN, ids=ids)
def test_python_examples_run(page: Path) -> None:
    for block in blocks(page.read_text("utf-8"), "python"):
        exec(compile(block, str(page), "exec"), {})


def test_the_quick_start_client_is_short() -> None:
    text = (EXAMPLES / "quickstart" / "client.mjs").read_text("utf-8")
    code = [line for line in text.splitlines() if line.strip() and not line.startswith("//")]
    assert len(code) <= 30


def test_the_text_of_the_project_names_no_place_of_somebodys_machine() -> None:
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("not a git checkout")
    place = re.compile(rb"(?<![\w.\-])/(?:work|root|home|Users)/\w")
    found = []
    for name in listed.stdout.split("\0"):
        path = ROOT / name
        if name and path.is_file() and place.search(path.read_bytes()):
            found.append(name)
    assert found == []


def quick_start(language: str, containing: str) -> str:
    """The code block of the README's quick start that contains a text."""
    text = (ROOT / "README.md").read_text("utf-8").partition("## Quick start")[2]
    return next(block for block in blocks(text, language) if containing in block)


@pytest.mark.e2e
def test_the_quick_start_shows_what_it_says(tmp_path: Path) -> None:
    node.install()
    (tmp_path / "node_modules").symlink_to(node.JS / "node_modules")
    shutil.copy(EXAMPLES / "quickstart" / "client.mjs", tmp_path)
    options = quick_start("sh", "twistd").partition(" anycable ")[2].split()

    def publish(containing: str) -> None:
        command = quick_start("sh", containing).replace(":8090", f":{running.broadcast_port}")
        subprocess.run(["bash", "-c", command], check=True, capture_output=True, timeout=30)

    with (
        server(*options) as running,
        subprocess.Popen(
            ["node", "client.mjs", running.url],
            cwd=tmp_path,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        ) as client,
    ):
        assert client.stdin is not None
        assert client.stdout is not None

        def press_enter() -> None:
            client.stdin.write("\n")
            client.stdin.flush()

        try:
            seen = [client.stdout.readline()]
            publish("hello")
            seen.append(client.stdout.readline())
            press_enter()
            seen.append(client.stdout.readline())
            publish("missed")
            press_enter()
            seen += [client.stdout.readline() for _ in range(6)]
        finally:
            client.kill()
        assert "".join(seen) == quick_start("text", "hello")


def test_the_tests_of_the_example_provider_pass() -> None:
    command = [sys.executable, "-m", "pytest", "-q", "-W", "error", "-p", "no:cacheprovider", "."]
    done = subprocess.run(command, cwd=ACME, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout


def test_what_examples_have_in_common_is_the_same() -> None:
    """Each can be taken by itself, so they share no files."""
    for name in ("realtime.py", "rooms.py", "room.html"):
        copies = [EXAMPLES / framework / "chat" / name for framework in ("fastapi", "flask")]
        assert copies[0].read_text("utf-8") == copies[1].read_text("utf-8")


def test_the_statements_are_in_the_order_of_their_numbers() -> None:
    chapters = yaml.safe_load((ROOT / "docs" / "statements.yml").read_text("utf-8"))
    ids = [re.fullmatch(r"([A-Z]+)-?(\d+)", s["id"]) for chapter in chapters for s in chapter["statements"]]
    numbers = [id.groups() for id in ids if id]
    assert len(numbers) == len(ids)
    for prefix in {prefix for prefix, _ in numbers}:
        own = [int(number) for p, number in numbers if p == prefix]
        assert own == sorted(own)
