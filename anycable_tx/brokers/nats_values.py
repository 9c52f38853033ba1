"""How named tuples are kept in the buckets of the NATS broker: as JSON, without what is as it is by default."""

from __future__ import annotations

from typing import Any, TypeVar

import orjson

__all__ = ["decode", "encode"]

T = TypeVar("T")


def encode(value: Any) -> bytes:
    """A named tuple whose fields all have defaults."""
    defaults = value._field_defaults
    return orjson.dumps({name: part for name, part in value._asdict().items() if part != defaults[name]})


def decode(kind: type[T], text: str | bytes) -> T:
    """The *kind* that was encoded. Fields that it has not are of other versions; what nobody here wrote is no more
    than its defaults."""
    fields: tuple[str, ...] = kind._fields  # type: ignore[attr-defined]
    try:
        said = orjson.loads(text)
        return kind(**{name: said[name] for name in fields if name in said})
    except (TypeError, ValueError):
        return kind()
