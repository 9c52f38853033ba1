"""What several workers share: chosen where nobody chose, refused where it cannot be shared."""

from __future__ import annotations

import pytest

from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from tests.config.conftest import Load


def test_one_worker_is_the_default_and_changes_nothing() -> None:
    settings = defaults(node_id="n")
    assert settings["workers"] == 1
    assert settings == defaults(node_id="n", workers=1)
    assert not settings["embed_nats"]


@pytest.mark.parametrize("presets", [(), ("broker",)])
def test_workers_share_an_embedded_nats_where_nothing_was_chosen(presets: tuple[str, ...]) -> None:
    settings = defaults(workers=2, presets=presets)
    assert settings["embed_nats"]
    assert (settings["broker"], settings["pubsub"]) == ("nats", "nats")
    assert settings["broadcast_adapter"] == ("http", "nats")
    assert settings.presets == presets


def test_a_way_in_that_was_chosen_stays() -> None:
    settings = defaults(workers=2, broadcast_adapter=["http"])
    assert settings["broadcast_adapter"] == ("http",)
    assert settings["broker"] == "nats"


@pytest.mark.parametrize(
    ("given", "broker", "pubsub"),
    [
        ({"redis_url": "redis://there", "presets": ("broker",)}, "redis", "redis"),
        ({"redis_url": "redis://there"}, "none", "redis"),
        ({"broker": "redis"}, "redis", "redis"),
        ({"nats_servers": ["nats://there:4222"], "presets": ("broker",)}, "nats", "nats"),
        ({"broker": "none", "pubsub": "nats"}, "none", "nats"),
    ],
)
def test_what_was_chosen_stays(given: dict[str, object], broker: str, pubsub: str) -> None:
    settings = defaults(workers=2, **given)
    assert (settings["broker"], settings["pubsub"]) == (broker, pubsub)
    assert not settings["embed_nats"]


@pytest.mark.parametrize(
    ("given", "sentence"),
    [
        (
            {"broker": "memory"},
            "broker: the memory broker lives in one process and cannot be shared by 2 workers; leave broker out for "
            "embedded NATS, or give redis or nats",
        ),
        (
            {"broker": "none", "pubsub": "none"},
            "pubsub: 2 workers need a bus to hand messages on to each other; leave broker and pubsub out for "
            "embedded NATS, or give redis_url, or pubsub=redis or nats",
        ),
        (
            {"broker": "none"},
            "pubsub: 2 workers need a bus to hand messages on to each other; leave broker and pubsub out for "
            "embedded NATS, or give redis_url, or pubsub=redis or nats",
        ),
        (
            {"embed_nats": False},
            "pubsub: 2 workers need a bus to hand messages on to each other; leave broker and pubsub out for "
            "embedded NATS, or give redis_url, or pubsub=redis or nats",
        ),
        ({"port": 0}, "port: 2 workers share a port, which has to be known; give its number"),
        (
            {"metrics_http": "/metrics"},
            "metrics_port: each of 2 workers serves metrics of its own and needs a port for that; give a number "
            "other than the main port: the first worker has it, the second the next one, and so on",
        ),
        (
            {"broker_snapshot": "file"},
            "broker_snapshot: only the memory broker has a snapshot, which 2 workers cannot use; leave it out",
        ),
    ],
)
def test_what_cannot_be_shared_is_refused_with_what_to_give(given: dict[str, object], sentence: str) -> None:
    with pytest.raises(ConfigurationError) as raised:
        defaults(workers=2, **given)
    assert str(raised.value) == sentence


@pytest.mark.parametrize("number", ["0", "-1", "257", "two"])
def test_a_number_of_workers_that_is_none_is_refused(number: str, load: Load) -> None:
    with pytest.raises(ConfigurationError, match="workers"):
        load(f"--workers={number}")


def test_the_file_and_the_environment_can_say_it(load: Load) -> None:
    assert load(file={"workers": 3})["workers"] == 3
    assert load(env={"ANYCABLE_WORKERS": "4"})["workers"] == 4


def test_settings_of_a_part_have_other_values_and_nothing_more_to_say() -> None:
    settings = defaults(public=True, presets=("broker",), node_id="me", secret="s")
    part = settings.part(node_id="me-1")
    assert {name for name in settings if part[name] != settings[name]} == {"node_id"}
    assert settings.notices
    assert (part.notices, part.presets, part.config_file) == ((), (), "")
    assert settings["node_id"] == "me"
