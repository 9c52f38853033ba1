"""Providers are found by kind and name, and imported only when chosen."""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import pytest
from zope.interface.verify import verifyObject

from anycable_tx.errors import ProviderError
from anycable_tx.interfaces import IProvider, ProviderContext
from anycable_tx.metrics import Metrics
from anycable_tx.providers import KINDS, Provider, create, find, providers


@pytest.fixture
def context() -> ProviderContext:
    return ProviderContext({}, None, None, Metrics())


def given(context: ProviderContext) -> ProviderContext:
    """A factory that answers what it was given."""
    return context


def test_every_provider_is_a_whole_declaration_of_a_known_kind() -> None:
    found = list(providers())
    assert found == sorted(found, key=lambda p: (p.kind, p.name))
    assert len({(p.kind, p.name) for p in found}) == len(found)
    for provider in found:
        verifyObject(IProvider, provider)
        assert provider.kind in KINDS


def test_providers_of_one_kind_are_listed_by_name() -> None:
    names = [p.name for p in providers("broker")]
    assert names == sorted(names)
    assert {"memory", "none"} <= set(names)
    assert {p.kind for p in providers("broker")} == {"broker"}
    assert list(providers("no such kind")) == []


def test_a_name_belongs_to_its_kind() -> None:
    assert find("broker", "none").kind == "broker"
    assert find("pubsub", "none").kind == "pubsub"


def test_an_unknown_name_is_refused_with_those_that_are_found() -> None:
    names = ", ".join(p.name for p in providers("broker"))
    with pytest.raises(ProviderError, match=rf"^broker: there is no broker named 'memroy'; found: {names}$"):
        find("broker", "memroy")


def test_the_option_is_named_as_the_user_knows_it() -> None:
    with pytest.raises(ProviderError, match=r"^broadcast_adapter: there is no broadcaster named 'x'"):
        find("broadcaster", "x")


def test_without_any_provider_the_refusal_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("anycable_tx.providers.getPlugins", lambda *_: [])
    with pytest.raises(ProviderError, match=r"found: none$"):
        find("broker", "memory")


def test_the_factory_is_given_the_context(context: ProviderContext) -> None:
    assert create(Provider("broker", "x", f"{__name__}:given"), context) is context


@pytest.mark.parametrize("path", ["no_such_module:create", f"{__name__}:no_such_function", f"{__name__}:"])
def test_a_factory_that_is_not_there_is_named_with_its_provider(path: str, context: ProviderContext) -> None:
    with pytest.raises(ProviderError, match=rf"^pubsub: the pubsub 'x' cannot be loaded from '{path}'"):
        create(Provider("pubsub", "x", path), context)


def test_what_a_factory_raises_itself_is_not_disguised(context: ProviderContext) -> None:
    with pytest.raises(ZeroDivisionError):
        create(Provider("broker", "x", f"{__name__}:breaks"), context)


def breaks(context: ProviderContext) -> Any:
    return 1 // 0


def test_listing_providers_imports_none_of_them() -> None:
    script = (
        "import sys; from anycable_tx.providers import providers; found = list(providers());"
        "loaded = [p.factory.partition(':')[0] for p in found if p.factory.partition(':')[0] in sys.modules];"
        "print(len(found) > 5, loaded, 'twisted.internet.reactor' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, timeout=30)
    assert done.stdout == "True [] False\n", done.stderr
