"""Load the settings: default, then file, then environment, then command line; then what follows from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from anycable_tx import providers
from anycable_tx.config.command_line import CommandLine, read_command_line
from anycable_tx.config.derive import derive
from anycable_tx.config.draft import Draft
from anycable_tx.config.environment import read_environment
from anycable_tx.config.files import find_file, read_file
from anycable_tx.config.given import Given
from anycable_tx.config.schema import Schema, schema_with
from anycable_tx.config.settings import Settings
from anycable_tx.config.values import check
from anycable_tx.errors import ConfigurationError

__all__ = ["defaults", "load_schema", "load_settings", "settle"]


def load_schema() -> Schema:
    """The built-in options and those of every installed provider."""
    return schema_with(providers.providers())


def load_settings(argv: Sequence[str], environ: Mapping[str, str], cwd: str = ".") -> Settings:
    """The settings that *argv* (without the program's name), *environ* and the configuration file make.

    Relative file names are resolved against *cwd*. Raises ConfigurationError whose text is one sentence naming
    the option, variable or key, the value unless it is secret, and what is accepted (CO-1, CO-5, CO-7).
    """
    schema = load_schema()
    return settle(schema, read_command_line(argv, schema), environ, cwd)


def settle(schema: Schema, line: CommandLine, environ: Mapping[str, str], cwd: str) -> Settings:
    """The settings of a command line that has been read; everything else as for ``load_settings``."""
    name = _file_name(line, environ, cwd)
    in_file: dict[str, Given] = {}
    unknown: list[str] = []
    if name:
        in_file, unknown = read_file(name, cwd, schema)
    draft = Draft(schema, in_file | read_environment(environ, schema) | line.given, environ, cwd)
    notices = [f"{name}: there is no key {key}{schema.suggest_key(key)}" for key in unknown]
    if notices and draft["strict"]:
        raise ConfigurationError("; ".join(notices))
    draft.notices.extend(notices)
    derive(draft)
    return Settings(draft, name)


def defaults(**overrides: Any) -> Settings:
    """The settings of a server without file and environment, with *overrides* as if set on the command line.

    For tests and embedding. Raises ConfigurationError for names and values that do not exist.
    """
    schema = load_schema()
    given = {}
    for name, value in overrides.items():
        if name not in schema:
            raise ConfigurationError(f"there is no option {name}{schema.suggest_flag(name)}")
        given[name] = Given(check(schema[name], value, name), "cli", name)
    draft = Draft(schema, given, {}, ".")
    derive(draft)
    return Settings(draft, "")


def _file_name(line: CommandLine, environ: Mapping[str, str], cwd: str) -> str:
    if line.controls.get("ignore_config_path"):
        return ""
    explicit = line.controls.get("config_path")
    if explicit == "":
        raise ConfigurationError("--config_path: '' is not accepted; expected the name of a file")
    return explicit or environ.get("ANYCABLE_CONFIG_PATH") or find_file(cwd)
