"""anycable_tx.config.options: the command line inside twistd."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from anycable_tx import __version__
from anycable_tx.config.load import load_schema
from anycable_tx.config.options import Options


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("ANYCABLE_NODE_ID", "n")


def _run(*argv: str) -> int:
    with pytest.raises(SystemExit) as e:
        Options().parseOptions(list(argv))
    assert isinstance(e.value.code, int)
    return e.value.code


def test_parsed_options_hold_the_settings(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf/anycable.yml").write_text("app: {ping_interval: 9}")
    options = Options()
    options.parseOptions(["--port", "81"])
    assert (options.settings["port"], options.settings["node_id"]) == (81, "n")
    assert options.settings["ping_interval"] == 9


@pytest.mark.statement("CO-52")
@pytest.mark.parametrize("argv", [["--version"], ["-v"], ["-version"], ["--port=1", "-v", "--nonsense"]])
def test_the_version_is_that_of_the_product(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert _run(*argv) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


@pytest.mark.parametrize("argv", [["--help"], ["-h"]])
def test_help_names_every_option_under_its_section(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    assert _run(*argv) == 0
    text = capsys.readouterr().out
    assert text.startswith("Usage: twistd [options] anycable [options]\n")
    for option in load_schema().live:
        assert (f"  --{option.name}" in text) == option.cli, option.name
    assert "\nBroker:\n" in text
    assert "--read_buffer_size" not in text
    assert "--jwt_id_key" not in text
    assert max(map(len, text.split("\n"))) <= 118


@pytest.mark.statement("CO-5", "CO-7", "CO-8", "CO-24", "CO-34", "BR-80")
@pytest.mark.parametrize(
    ("argv", "line"),
    [
        (
            ["--ping_interval=abc"],
            "--ping_interval: 'abc' is not accepted; expected a number of seconds, at least 0.01",
        ),
        (["--config_path=no.yml"], "configuration file: cannot read 'no.yml': No such file or directory"),
        (["--config_path=bad.yml"], "bad.yml: there is no key a, b; did you mean"),
        (["--presets=fly"], "--presets: the preset fly needs the environment variable FLY_APP_NAME and FLY_REGION"),
        (["--log_level=loud"], "--log_level: 'loud' is not accepted; expected one of debug, info, warn, error"),
        (["--broker=acme"], "broker: there is no broker named 'acme'; found: "),
        (["--nonsense\nmore"], "'--nonsense\\nmore' is no option"),
    ],
)
def test_an_error_is_one_line_and_status_1(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, argv: list[str], line: str
) -> None:
    (tmp_path / "bad.yml").write_text('strict: true\n"a, b; did you mean": {}\n')
    assert _run(*argv) == 1
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith(f"anycable: {line}")
    assert err.count("\n") == 1


@pytest.mark.statement("CO-5")
def test_a_bad_variable_stops_the_start(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ANYCABLE_NOAUTH", "yes")
    assert _run() == 1
    assert capsys.readouterr().err == "anycable: ANYCABLE_NOAUTH: 'yes' is not accepted; expected true or false\n"


@pytest.mark.statement("CO-9")
def test_print_config_shows_secrets_only_on_demand(capsys: pytest.CaptureFixture[str]) -> None:
    assert _run("--print-config", "--secret=hush") == 0
    assert "hush" not in capsys.readouterr().out
    assert _run("--print-config", "--show-secrets", "--secret=hush") == 0
    assert yaml.safe_load(capsys.readouterr().out)["secret"] == "hush"


def test_arguments_of_the_process_are_the_default(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["anycable-tx", "--version"])
    with pytest.raises(SystemExit):
        Options().parseOptions()
    assert capsys.readouterr().out == f"{__version__}\n"


_TWISTD = """
import sys, types
import anycable_tx
from anycable_tx.config.options import Options

def make_service(options):
    print("port", options.settings["port"], "reactor", "twisted.internet.reactor" in sys.modules)
    raise SystemExit(0)

service = types.ModuleType("anycable_tx.service")
service.Options, service.makeService = Options, make_service
sys.modules["anycable_tx.service"] = anycable_tx.service = service
from twisted.scripts.twistd import run
sys.argv[0] = "twistd"
run()
"""


def _twistd(*argv: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-c", _TWISTD, *argv], capture_output=True, text=True, timeout=60)


def test_help_works_inside_twistd() -> None:
    result = _twistd("-n", "anycable", "--help")
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith("Usage: twistd [options] anycable [options]\n")


def test_errors_inside_twistd_are_one_line_and_status_1() -> None:
    result = _twistd("-n", "anycable", "--prot=1")
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr == "anycable: there is no option --prot; did you mean --port?\n"


def test_options_inside_twistd_reach_the_service() -> None:
    result = _twistd("-n", "anycable", "-port", "81", "--noauth=true")
    assert result.stdout.startswith("port 81 reactor False")


def test_parsing_does_not_import_the_reactor() -> None:
    code = (
        "import sys; from anycable_tx.config.options import Options; "
        "Options().parseOptions(['--presets=broker', '--secret=x']); "
        "sys.exit('twisted.internet.reactor' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=60).returncode == 0
