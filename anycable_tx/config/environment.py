"""The environment: ANYCABLE_ and the option's name, and the further names some options have."""

from __future__ import annotations

from collections.abc import Mapping

from anycable_tx.config.given import Given
from anycable_tx.config.schema import Schema, environment_names
from anycable_tx.config.values import parse

__all__ = ["read_environment"]


def read_environment(environ: Mapping[str, str], schema: Schema) -> dict[str, Given]:
    """The options that *environ* gives.

    The ANYCABLE_ name beats an option's further names (CO-2). An empty variable means '' for texts, lists and
    maps, False for booleans, and nothing at all for numbers (CO-4). Raises ConfigurationError naming the
    variable.
    """
    given = {}
    for option in schema:
        for name in environment_names(option):
            text = environ.get(name)
            if text is None or (text == "" and option.kind in ("int", "float")):
                continue
            if text == "" and option.kind == "bool":
                text = "false"
            given[option.name] = Given(parse(option, text, name), "env", name)
            break
    return given
