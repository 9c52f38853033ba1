"""The schema: the built-in options and those of the installed providers, found by name, key and variable."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import replace
from difflib import get_close_matches

from anycable_tx.config.declarations import access, admin, api, backend, delivery, metrics, nats, server
from anycable_tx.config.option import Option
from anycable_tx.errors import ConfigurationError
from anycable_tx.interfaces import IProvider

__all__ = ["BUILTIN", "KINDS", "Schema", "environment_names", "schema_with"]

KINDS = frozenset({"str", "int", "float", "bool", "list", "map", "rules"})

#: Every built-in option, in the order of the reference.
BUILTIN: tuple[Option, ...] = (
    *server.GLOBAL,
    *server.SERVER,
    *server.WEBSOCKET,
    *server.EVENTS,
    *access.AUTHENTICATION,
    *access.STREAMS,
    *backend.BACKEND,
    *backend.DISCONNECTS,
    *delivery.BROADCASTING,
    *api.API,
    *admin.ADMIN,
    *delivery.BROKER,
    *delivery.PUBSUB,
    *nats.EMBEDDED,
    *server.LOGGING,
    *metrics.METRICS,
    *server.SHUTDOWN,
)


class Schema:
    """A consistent set of options, iterable in the order of the reference.

    Every secret option that is not an old name brings a ``<name>_file`` option along, whose value is the path
    of a file with the secret. The same Option may be given more than once, as providers share options.
    Raises ConfigurationError when two options claim one name, YAML key or environment variable.
    """

    def __init__(self, options: Iterable[Option]) -> None:
        self._by_name: dict[str, Option] = {}
        self._by_key: dict[str, Option] = {}
        self._by_flag: dict[str, Option] = {o.name: o for o in server.CONTROLS}
        self._by_flag.update((alias, o) for o in server.CONTROLS for alias in o.aliases)
        for option in options:
            for each in (option, *_file_variant(option)):
                self._add(each)

    def _add(self, option: Option) -> None:
        known = self._by_name.get(option.name)
        if known == option:
            return
        if option.kind not in KINDS:
            raise ConfigurationError(
                f"option {option.name}: there is no kind {option.kind!r}; known: {', '.join(sorted(KINDS))}"
            )
        taken = known or any(flag in self._by_flag for flag in (option.name, *option.aliases))
        if not taken and option.file:
            key = option.yaml_key
            taken = any(k == key or k.startswith(key + ".") or key.startswith(k + ".") for k in self._by_key)
        if taken:
            raise ConfigurationError(
                f"option {option.name} (key {option.yaml_key}): another option has this name or key already"
            )
        self._by_name[option.name] = option
        if option.file:
            self._by_key[option.yaml_key] = option
        if option.cli:
            self._by_flag.update((flag, option) for flag in (option.name, *option.aliases))

    def __iter__(self) -> Iterator[Option]:
        return iter(self._by_name.values())

    def __contains__(self, name: str) -> bool:
        return name in self._by_name

    def __getitem__(self, name: str) -> Option:
        return self._by_name[name]

    @property
    def live(self) -> list[Option]:
        """The options that mean something: not the old names, not those that are accepted and ignored."""
        return [option for option in self._by_name.values() if option.tag not in ("D", "G")]

    def flag(self, name: str) -> Option | None:
        """The option a command line calls *name*; dashes and underscores are the same."""
        return self._by_flag.get(name.replace("-", "_"))

    def key(self, path: str) -> Option | None:
        """The option at the dotted YAML key *path*."""
        return self._by_key.get(path)

    def keys_below(self, path: str) -> list[str]:
        """The dotted keys inside the section *path*; none if it is no section."""
        return [key for key in self._by_key if key.startswith(path + ".")]

    def suggest_flag(self, name: str) -> str:
        """'; did you mean --x?' for the closest option, or ''."""
        close = get_close_matches(name.replace("-", "_"), self._by_flag, 1, 0.7)
        return f"; did you mean --{close[0]}?" if close else ""

    def suggest_key(self, path: str) -> str:
        """'; did you mean x.y?' for the closest YAML key, or ''."""
        close = get_close_matches(path, self._by_key, 1, 0.7)
        return f"; did you mean {close[0]}?" if close else ""


def _file_variant(option: Option) -> tuple[Option, ...]:
    if not option.secret or option.tag == "D":
        return ()
    return (
        replace(
            option,
            name=f"{option.name}_file",
            kind="str",
            key=f"{option.yaml_key}_file",
            help=f"file with the value of {option.name}",
            secret=False,
            env=(),
            aliases=(),
            default="",
        ),
    )


def environment_names(option: Option) -> tuple[str, ...]:
    """The environment variables of *option*, the strongest first."""
    return (f"ANYCABLE_{option.name.upper()}", *option.env) if option.cli else ()


def schema_with(providers: Iterable[IProvider]) -> Schema:
    """The built-in options and those of *providers*."""
    options = list(BUILTIN)
    for provider in providers:
        options.extend(provider.options)
    return Schema(options)
