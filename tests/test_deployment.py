"""What is shipped for systemd, containers and proxies says what the server understands."""

from __future__ import annotations

import configparser
import json
import os
import re
import shutil
import subprocess
import sys
import tomllib
import zipfile
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

import pytest
import yaml

from anycable_tx.config.load import defaults, load_schema, load_settings
from anycable_tx.config.schema import environment_names
from anycable_tx.testing.processes import HOST, free_port, server, wait_for

ROOT = Path(__file__).resolve().parent.parent
CONF = ROOT / "conf"
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))["project"]
DEFAULTS = defaults()


def known_variables() -> set[str]:
    return {"ANYCABLE_CONFIG_PATH"} | {name for option in load_schema() for name in environment_names(option)}


@pytest.mark.parametrize(
    "path",
    [*sorted(p for p in CONF.rglob("*") if p.is_file()), ROOT / "Dockerfile", ROOT / "Procfile"],
    ids=lambda path: path.relative_to(ROOT).as_posix(),
)
def test_variables_and_options_are_ones_of_the_server(path: Path) -> None:
    text = path.read_text("utf-8")
    schema = load_schema()
    assert set(re.findall(r"\bANYCABLE_\w+", text)) <= known_variables()
    options = re.findall(r"(?:anycable-tx |twistd -n anycable |args: \[|told to believe these: )--(\w+)", text)
    assert [name for name in options if name != "config_path" and schema.flag(name) is None] == []


# -- systemd


class Unit:
    """A unit file: sections with keys that may be given several times."""

    def __init__(self, name: str) -> None:
        self._lines: dict[str, list[tuple[str, str]]] = {}
        section = ""
        for line in (CONF / "systemd" / name).read_text("utf-8").splitlines():
            if line.startswith("["):
                section = line.strip("[]")
            elif line and not line.startswith("#"):
                key, equals, value = line.partition("=")
                assert equals, line
                self._lines.setdefault(section, []).append((key, value))

    def get(self, section: str, key: str) -> list[str]:
        return [value for name, value in self._lines[section] if name == key]


def test_the_units_are_ini_files() -> None:
    for name in ("anycable.service", "anycable.socket"):
        parser = configparser.RawConfigParser(strict=False)
        parser.read(CONF / "systemd" / name)
        assert parser.sections()


def test_the_service_is_told_what_the_server_understands() -> None:
    service = Unit("anycable.service")
    [command] = service.get("Service", "ExecStart")
    program, *options = command.split()
    assert Path(program).name in PROJECT["scripts"]
    environ = dict(line.split("=", 1) for line in service.get("Service", "Environment"))
    environ["ANYCABLE_SECRET_FILE"] = "pyproject.toml"
    settings = load_settings([option.replace("/etc/anycable", "conf") for option in options], environ, str(ROOT))
    assert settings.notices == ()
    assert settings["broker_snapshot"].startswith("/var/lib/" + service.get("Service", "StateDirectory")[0])
    assert (
        int(service.get("Service", "TimeoutStopSec")[0]) > settings["shutdown_delay"] + settings["shutdown_timeout"]
    )
    # The sockets are those of the ports, and there is a port for each.
    ports = {settings["port"], settings["http_broadcast_port"]}
    assert {int(s.rpartition(":")[2]) for s in Unit("anycable.socket").get("Socket", "ListenStream")} == ports
    assert service.get("Unit", "Requires") == ["anycable.socket"]


# -- containers


def dockerfile() -> list[tuple[str, str]]:
    """The instructions and what they are given."""
    text = (ROOT / "Dockerfile").read_text("utf-8").replace("\\\n", " ")
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    return [(word, rest.strip()) for word, _, rest in (line.partition(" ") for line in lines)]


def test_the_image_is_built_from_files_that_are_there_and_installs_extras_that_exist(tmp_path: Path) -> None:
    instructions = dockerfile()
    ignored = (ROOT / ".dockerignore").read_text("utf-8").splitlines()
    sources = [name for word, rest in instructions if word == "COPY" and "--from" not in rest
               for name in rest.split()[:-1]]  # fmt: skip
    assert sources
    for name in sources:
        assert f"!{name}" in ignored
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tmp_path / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copy(ROOT / name, tmp_path)
    [extras] = [rest.partition("=")[2].split(",") for word, rest in instructions if word == "ARG"]
    assert set(extras) <= set(PROJECT["optional-dependencies"])
    subprocess.run([sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", "."], cwd=tmp_path, check=True,
                   capture_output=True, timeout=60)  # fmt: skip
    [wheel] = tmp_path.glob("*.whl")
    names = zipfile.ZipFile(wheel).namelist()
    assert {"twisted/plugins/anycable_plugin.py", "anycable_tx/service.py"} <= set(names)
    assert not [name for name in names if fnmatch(name, "tests/*")]


def test_the_image_runs_as_nobody_special_and_shows_the_default_ports() -> None:
    instructions = dict(dockerfile())
    assert int(instructions["USER"]) > 0
    assert {int(port) for port in instructions["EXPOSE"].split()} == {
        DEFAULTS["port"],
        DEFAULTS["http_broadcast_port"],
    }
    assert json.loads(instructions["ENTRYPOINT"])[0] in PROJECT["scripts"]


@pytest.mark.e2e
def test_the_images_healthcheck_tells_a_server_from_none() -> None:
    [text] = [rest for word, rest in dockerfile() if word == "HEALTHCHECK"]
    program, *arguments = json.loads(text.partition("CMD ")[2])
    assert program == "python"

    def status(port: int, variable: str) -> int:
        environ = {k: v for k, v in os.environ.items() if k not in ("PORT", "ANYCABLE_PORT")} | {variable: str(port)}
        return subprocess.run([sys.executable, *arguments], env=environ, capture_output=True, timeout=30).returncode

    with server("--public") as running:
        assert (status(running.port, "ANYCABLE_PORT"), status(running.port, "PORT")) == (0, 0)
    assert status(running.port, "PORT") != 0


@pytest.mark.e2e
def test_the_procfile_starts_a_server_on_the_platforms_port(tmp_path: Path) -> None:
    kind, _, command = (ROOT / "Procfile").read_text("utf-8").strip().partition(": ")
    assert kind == "web"
    port = free_port()
    environ = {**os.environ, "PORT": str(port), "HEROKU_APP_ID": "a", "HEROKU_DYNO_ID": "d", "ANYCABLE_SECRET": "s"}
    scripts = str(Path(sys.executable).parent)
    process = subprocess.Popen(
        command, shell=True, cwd=tmp_path, env=environ | {"PATH": f"{scripts}:{os.environ['PATH']}"},
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        wait_for(
            lambda: f"Handle health requests at http://0.0.0.0:{port}/" in process.stdout.readline(), "the start"
        )
        os.killpg(process.pid, 15)
        process.communicate(timeout=30)
    finally:
        process.kill()
        process.wait()


def manifests() -> dict[str, Any]:
    """The Kubernetes objects by kind."""
    documents = yaml.safe_load_all((CONF / "kubernetes" / "anycable.yml").read_text("utf-8"))
    return {document["kind"]: document for document in documents}


def test_the_pods_are_configured_with_what_the_server_understands(tmp_path: Path) -> None:
    objects = manifests()
    pod = objects["Deployment"]["spec"]["template"]["spec"]
    [container] = pod["containers"]
    for name, text in objects["ConfigMap"]["data"].items():
        (tmp_path / name).write_text(text)
    (tmp_path / "secret").write_text("s3cr3t\n")
    places = {"/etc/anycable": str(tmp_path), "/run/secrets/anycable": str(tmp_path)}
    mounts = {mount["mountPath"]: mount["name"] for mount in container["volumeMounts"]}
    assert set(places) <= set(mounts)
    assert set(mounts.values()) == {volume["name"] for volume in pod["volumes"]}

    def moved(text: str) -> str:
        for there, here in places.items():
            text = text.replace(there, here)
        return text

    environ = {variable["name"]: moved(variable.get("value", "pod-1")) for variable in container["env"]}
    settings = load_settings([moved(argument) for argument in container["args"]], environ, str(tmp_path))
    assert settings.notices == ()
    assert (settings["broker"], settings["pubsub"], settings["node_id"]) == ("redis", "redis", "pod-1")

    [port] = container["ports"]
    assert port["containerPort"] == settings["port"] == settings["http_broadcast_port"]
    for probe, path in (("liveness", "health"), ("startup", "health"), ("readiness", "ready")):
        target = container[f"{probe}Probe"]["httpGet"]
        assert target == {"path": settings[f"{path}_path"], "port": port["name"]}
    # The node is out of rotation before its listeners close, and all of that fits in before it is killed.
    readiness = container["readinessProbe"]
    assert settings["shutdown_delay"] > readiness["periodSeconds"] * readiness["failureThreshold"]
    assert pod["terminationGracePeriodSeconds"] > settings["shutdown_delay"] + settings["shutdown_timeout"]


def test_service_budget_and_deployment_are_about_the_same_pods() -> None:
    objects = manifests()
    deployment = objects["Deployment"]["spec"]
    labels = deployment["template"]["metadata"]["labels"]
    assert deployment["selector"]["matchLabels"] == labels
    assert objects["Service"]["spec"]["selector"] == labels
    assert objects["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"] == labels
    [port] = objects["Service"]["spec"]["ports"]
    assert port["targetPort"] in {p["name"] for p in deployment["template"]["spec"]["containers"][0]["ports"]}


# -- proxies


@pytest.mark.parametrize("name", ["nginx/anycable.conf", "haproxy/haproxy.cfg"])
def test_the_proxies_lead_to_the_servers_defaults(name: str) -> None:
    text = (CONF / name).read_text("utf-8")
    assert f"{HOST}:{DEFAULTS['port']}" in text
    for path in (*DEFAULTS["path"], DEFAULTS["sse_path"]):
        assert re.search(rf"^[^#]*(location|path) .*\b{path.strip('/')}\b", text, re.M)
    seconds = [
        int(n) for n in re.findall(r"(?:read_timeout|timeout tunnel|timeout client|timeout server) +(\d+)s", text)
    ]
    assert seconds
    assert min(seconds) > DEFAULTS["ping_interval"]
