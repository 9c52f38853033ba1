"""Find providers by kind and name, and load the chosen ones only."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from importlib import import_module
from typing import Any

from twisted.plugin import IPlugin, getPlugins
from zope.interface import implementer

from anycable_tx.config.option import Option
from anycable_tx.errors import ProviderError
from anycable_tx.interfaces import IProvider, ProviderContext

__all__ = ["KINDS", "Provider", "create", "find", "providers"]

#: Kind -> the option that names a provider of it.
KINDS = {
    "broker": "broker",
    "broadcaster": "broadcast_adapter",
    "pubsub": "pubsub",
    "controller": "controllers",
}


@implementer(IPlugin, IProvider)
@dataclass(frozen=True)
class Provider:
    """A provider's declaration (``IProvider``): names and a dotted path, nothing that imports the backend."""

    kind: str
    name: str
    factory: str
    needs_asyncio: bool = False
    options: tuple[Option, ...] = ()


def providers(kind: str | None = None) -> Iterator[IProvider]:
    """The providers of *kind* (all of them without one), in the order of their names."""
    import twisted.plugins

    found = [p for p in getPlugins(IProvider, twisted.plugins) if kind in (None, p.kind)]
    yield from sorted(found, key=lambda p: (p.kind, p.name))


def find(kind: str, name: str) -> IProvider:
    """The provider of that kind and name. Raises ProviderError naming those there are."""
    known = []
    for provider in providers(kind):
        if provider.name == name:
            return provider
        known.append(provider.name)
    names = ", ".join(known) or "none"
    raise ProviderError(f"{KINDS[kind]}: there is no {kind} named {name!r}; found: {names}")


def create(provider: IProvider, context: ProviderContext) -> Any:
    """Import the provider's factory and call it. Raises ProviderError if it cannot be imported."""
    module, _, attribute = provider.factory.partition(":")
    try:
        factory = getattr(import_module(module), attribute)
    except (ImportError, AttributeError) as e:
        raise ProviderError(
            f"{KINDS[provider.kind]}: the {provider.kind} {provider.name!r} cannot be loaded from "
            f"{provider.factory!r}: {e}"
        ) from e
    return factory(context)
