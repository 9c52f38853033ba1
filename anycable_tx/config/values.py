"""Values: from text or YAML to the option's type, within its limits."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from anycable_tx.config.option import Option
from anycable_tx.config.rules import check_rules
from anycable_tx.errors import ConfigurationError

__all__ = ["MASK", "accepted", "check", "parse"]

#: What is shown instead of a secret. As a value it is refused, so that a masked dump cannot be run.
MASK = "********"

_TRUE = frozenset({"1", "t", "T", "true", "TRUE", "True"})
_FALSE = frozenset({"0", "f", "F", "false", "FALSE", "False"})
_WHOLE = re.compile(r"[+-]?[0-9]{1,18}")
_NUMBER = re.compile(r"[+-]?([0-9]{1,18}(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]{1,2})?")


def parse(option: Option, text: str, where: str) -> Any:
    """The value that *text*, given at *where*, means for *option*.

    Lists are separated by commas and trimmed; maps are ``key:value`` pairs. Raises ConfigurationError naming
    *where*, the value unless it is secret, and what is accepted.
    """
    value: Any = None
    if option.kind == "bool":
        value = True if text in _TRUE else False if text in _FALSE else None
    elif option.kind == "int":
        value = int(text) if _WHOLE.fullmatch(text) else None
    elif option.kind == "float":
        value = float(text) if _NUMBER.fullmatch(text) else None
    elif option.kind == "list":
        value = text.split(",")
    elif option.kind == "map":
        value = _pairs(text)
    elif option.kind == "str":
        value = text
    if value is None:
        raise _refused(option, text, where)
    return _limited(option, value, text, where)


def check(option: Option, value: Any, where: str) -> Any:
    """The value that a YAML or Python *value*, given at *where*, means for *option*; text is parsed.

    Lists become tuples. Raises ConfigurationError as ``parse`` does.
    """
    if isinstance(value, str) and option.kind != "rules":
        return parse(option, value, where)
    fits = {
        "bool": isinstance(value, bool),
        "int": isinstance(value, int) and not isinstance(value, bool),
        "float": isinstance(value, (int, float)) and not isinstance(value, bool),
        "list": _is_list(value) and all(isinstance(v, str) for v in value),
        "map": isinstance(value, Mapping) and all(map(_is_pair, value.items())),
        "rules": _is_list(value),
    }
    if not fits.get(option.kind, False):
        raise _refused(option, value, where)
    return _limited(option, value, value, where)


def accepted(option: Option) -> str:
    """What *option* accepts, as the end of a sentence."""
    if option.choices:
        words = ", ".join(option.choices)
        return f"a list of {words}" if option.kind == "list" else f"one of {words}"
    text = {
        "str": "UTF-8 text (in quotes in YAML, if it looks like something else)",
        "int": "a whole number",
        "float": "a number",
        "bool": "true or false",
        "list": "a list of text",
        "map": "pairs of a name and a text",
        "rules": "a list of mappings",
    }[option.kind]
    if option.unit:
        text += f" of {option.unit}" if option.unit != "s" else " of seconds"
    if option.minimum is not None and option.maximum is not None:
        text += f" from {option.minimum:g} to {option.maximum:g}"
    elif option.minimum is not None:
        text += f", at least {option.minimum:g}"
    elif option.maximum is not None:
        text += f", at most {option.maximum:g}"
    return text


def _is_list(value: Any) -> bool:
    return isinstance(value, Sequence) and not isinstance(value, (str, bytes))


def _is_unicode(value: Any) -> bool:
    """Whether the texts of *value* can be encoded: bytes of a variable that are no UTF-8 cannot."""
    texts = (value,) if isinstance(value, str) else value if isinstance(value, tuple) else ()
    try:
        for text in texts:
            text.encode()
    except UnicodeEncodeError:
        return False
    return True


def _is_pair(item: tuple[Any, Any]) -> bool:
    name, value = item
    return isinstance(name, str) and isinstance(value, (str, int, float)) and not isinstance(value, bool)


def _pairs(text: str) -> dict[str, str] | None:
    pairs = {}
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, colon, value = item.partition(":")
        if not colon or not name.strip():
            return None
        pairs[name.strip()] = value.strip()
    return pairs


def _limited(option: Option, value: Any, given: Any, where: str) -> Any:
    if option.kind == "rules":
        return check_rules(value, where)
    if option.kind == "list":
        value = tuple(filter(None, (item.strip() for item in value)))
    elif option.kind == "map":
        value = {name: str(item) for name, item in value.items()}
    elif option.kind == "float" and float(value).is_integer():
        value = int(value)
    if option.secret and (value == MASK or (isinstance(value, tuple) and MASK in value)):
        raise ConfigurationError(f"{where}: this is the mask that stands for a secret; give the secret itself")
    fine = _is_unicode(value)
    if option.choices:
        fine = fine and all(item in option.choices for item in (value if option.kind == "list" else (value,)))
    if option.kind in ("int", "float"):
        # Written so that a NaN is outside.
        low = float("-1e18") if option.minimum is None else option.minimum
        high = float("1e18") if option.maximum is None else option.maximum
        fine = fine and low <= value <= high
    if not fine:
        raise _refused(option, given, where)
    return value


def _refused(option: Option, value: Any, where: str) -> ConfigurationError:
    shown = "the value" if option.secret else _short(value)
    return ConfigurationError(f"{where}: {shown} is not accepted; expected {accepted(option)}")


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
