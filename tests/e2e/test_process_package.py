"""What pip makes of the project: the wheel's content, and a server that runs from it alone."""

from __future__ import annotations

import subprocess
import sys
import sysconfig
import venv
from pathlib import Path
from zipfile import ZipFile

import pytest

import anycable_tx
from tests.e2e.process import TWISTD, Process, ended

pytestmark = pytest.mark.e2e

ROOT = Path(anycable_tx.__file__).parent.parent
PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check", "-q")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel, built from this checkout."""
    target = tmp_path_factory.mktemp("wheel")
    options = ["--no-deps", "--no-index", "--no-build-isolation", "-w", str(target)]
    subprocess.run([*PIP, "wheel", *options, str(ROOT)], check=True, timeout=60)
    [path] = target.glob("*.whl")
    return path


def test_the_wheel_holds_the_package_and_its_plugin_and_nothing_of_twisteds(wheel: Path) -> None:
    names = set(ZipFile(wheel).namelist())
    info = f"anycable_tx-{anycable_tx.__version__}.dist-info/"
    kinds = {".py", ".proto", ".binpb", ".html"}
    paths = (ROOT / "anycable_tx").rglob("*")
    sources = {path.relative_to(ROOT).as_posix() for path in paths if path.suffix in kinds}
    assert {name for name in names if not name.startswith(info)} == {
        *sources,
        "anycable_tx/py.typed",
        "twisted/plugins/anycable_plugin.py",
    }
    assert f"{info}entry_points.txt" in names


def test_a_server_runs_from_the_wheel_alone(wheel: Path, tmp_path: Path) -> None:
    home = tmp_path / "venv"
    venv.create(home, with_pip=False, symlinks=True)
    python = home / "bin" / "python"
    subprocess.run([*PIP, "--python", str(python), "install", "--no-deps", "--no-index", str(wheel)], check=True)
    # The packages it depends on are those of these tests; this checkout is not on the path.
    [packages] = home.glob("lib/python*/site-packages")
    (packages / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    (tmp_path / "cwd").mkdir()
    where = ended(str(python), "-c", "import anycable_tx; print(anycable_tx.__file__)", cwd=tmp_path / "cwd")
    assert Path(where.stdout.strip()) == packages / "anycable_tx" / "__init__.py"

    help = ended(str(python), *TWISTD[1:], "anycable", "--help", cwd=tmp_path / "cwd")
    assert "--broker=" in help.stdout, help.stderr
    command = (str(home / "bin" / "anycable-tx"),)
    with Process("--public", "--presets=broker", cwd=tmp_path / "cwd", command=command) as it:
        it.ready().stop()
