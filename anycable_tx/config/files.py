"""The configuration file: found, read, and matched against the schema."""

from __future__ import annotations

from collections.abc import Hashable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from anycable_tx.config.given import Given
from anycable_tx.config.option import Option
from anycable_tx.config.schema import Schema
from anycable_tx.config.values import check
from anycable_tx.errors import ConfigurationError

__all__ = ["LOOKUP", "find_file", "read_file", "read_secret"]

#: Where a configuration is looked for, the first that exists.
LOOKUP = ("conf/anycable.yml", "/etc/anycable/anycable.yml")


def find_file(cwd: str) -> str:
    """The first file of LOOKUP that exists, relative names against *cwd*; '' if there is none.

    One that cannot be looked at counts as there, so that reading it says why.
    """
    for name in LOOKUP:
        try:
            if Path(cwd, name).is_file():
                return name
        except OSError:
            return name
    return ""


def read_file(name: str, cwd: str, schema: Schema) -> tuple[dict[str, Given], list[str]]:
    """The options that the YAML file *name* gives, and the dotted keys in it that do not exist.

    A key without a value counts as absent. Raises ConfigurationError naming the file, and the line or the
    dotted key.
    """
    content = _load(name, cwd)
    if content is None:
        return {}, []
    if not isinstance(content, Mapping):
        raise ConfigurationError(f"{name}: a mapping of options is expected, not {type(content).__name__}")
    given: dict[str, Given] = {}
    unknown: list[str] = []
    for path, value in _leaves(content, "", schema, name):
        option = schema.key(path)
        if option is None:
            unknown.append(path)
        elif value is not None:
            where = f"{name}: {path}"
            if option.name in given:
                raise ConfigurationError(f"{where}: this key is given twice")
            given[option.name] = Given(_value(option, value, where), "file", where)
    return given, unknown


def read_secret(name: str, cwd: str, where: str) -> str:
    """The content of the file *name* without the blanks around it. Raises ConfigurationError naming *where*."""
    text = _text(name, cwd, where).strip()
    if not text:
        raise ConfigurationError(f"{where}: the file {name!r} is empty")
    return text


def _value(option: Option, value: Any, where: str) -> Any:
    return check(option, value, where)


def _leaves(section: Mapping[Any, Any], path: str, schema: Schema, name: str) -> Iterator[tuple[str, Any]]:
    """Dotted keys and values; a mapping is a section unless an option lives at its key."""
    for key, value in section.items():
        inner = f"{path}.{key}" if path else str(key)
        below = schema.keys_below(inner)
        if isinstance(value, Mapping) and schema.key(inner) is None and (value or below):
            yield from _leaves(value, inner, schema, name)
        elif below and value is not None:
            raise ConfigurationError(f"{name}: {inner}: a mapping is expected here, with {_last_parts(below, inner)}")
        elif not below:
            yield inner, value


def _last_parts(keys: list[str], path: str) -> str:
    return ", ".join(sorted({key[len(path) + 1 :].partition(".")[0] for key in keys}))


def _text(name: str, cwd: str, where: str) -> str:
    try:
        return Path(cwd, name).read_text(encoding="utf-8")
    except OSError as e:
        raise ConfigurationError(f"{where}: cannot read {name!r}: {e.strerror or e}") from e
    except ValueError as e:
        raise ConfigurationError(f"{where}: {name!r} is no UTF-8 text") from e


def _load(name: str, cwd: str) -> Any:
    text = _text(name, cwd, "configuration file")
    try:
        return yaml.load(text, _Loader)
    except yaml.MarkedYAMLError as e:
        place = f", line {e.problem_mark.line + 1}" if e.problem_mark else ""
        raise ConfigurationError(f"{name}{place}: this is no valid YAML: {e.problem or e.context}") from e
    except (yaml.YAMLError, ValueError, RecursionError) as e:
        raise ConfigurationError(f"{name}: this is no valid YAML: {e}") from e


class _Loader(yaml.SafeLoader):
    """A SafeLoader that refuses a key given twice, which would silently drop the first."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key_node, _ in node.value:
            key = (key_node.tag, key_node.value) if isinstance(key_node, yaml.ScalarNode) else None
            if key is not None and key in seen:
                raise yaml.constructor.ConstructorError(
                    problem=f"the key {key_node.value!r} is given twice", problem_mark=key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)
