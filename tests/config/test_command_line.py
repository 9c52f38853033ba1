"""anycable_tx.config.command_line"""

import pytest

from anycable_tx.config.load import defaults
from anycable_tx.errors import ConfigurationError
from tests.config.conftest import Load


@pytest.mark.statement("CO-6")
@pytest.mark.parametrize(
    ("argv", "value"),
    [
        (["--public-streams"], True),
        (["--public_streams"], True),
        (["-public_streams"], True),
        (["--public_streams=true"], True),
        (["--public_streams=false"], False),
        (["-public-streams=f"], False),
        (["--public_streams", "--public_streams=0"], False),
    ],
)
def test_a_boolean_is_given_in_every_spelling(load: Load, argv: list[str], value: bool) -> None:
    settings = load(*argv)
    assert settings["public_streams"] is value
    assert settings.was_set("public_streams")


@pytest.mark.statement("CO-6")
@pytest.mark.parametrize("argv", [["--max_conn=7"], ["--max-conn", "7"], ["-max-conn=7"], ["-max_conn", "7"]])
def test_dashes_and_underscores_are_the_same(load: Load, argv: list[str]) -> None:
    assert load(*argv)["max_conn"] == 7


def test_the_last_of_several_values_counts(load: Load) -> None:
    assert load("--port=1", "--port=2")["port"] == 2


def test_a_value_may_hold_equals_signs_and_line_ends(load: Load) -> None:
    assert load("--secret=a=b\nc")["secret"] == "a=b\nc"


def test_a_value_may_begin_with_a_dash(load: Load) -> None:
    assert load("--secret", "-x")["secret"] == "-x"
    assert load("--secret", "--unheard-of")["secret"] == "--unheard-of"


@pytest.mark.parametrize("argv", [["--secret"], ["--secret", "--noauth"], ["--port", "--secret=x"]])
def test_a_missing_value_is_named(load: Load, argv: list[str]) -> None:
    with pytest.raises(ConfigurationError, match=r"^--(secret|port) needs a value$"):
        load(*argv)


def test_an_unknown_option_is_named_with_the_closest_one(load: Load) -> None:
    with pytest.raises(
        ConfigurationError, match=r"^there is no option --brodcast-key; did you mean --broadcast_key\?$"
    ):
        load("--brodcast-key=x")
    with pytest.raises(ConfigurationError, match=r"^there is no option --zzzz$"):
        load("--zzzz")


def test_options_of_the_file_only_are_no_options_here(load: Load) -> None:
    with pytest.raises(ConfigurationError, match="no option --broker_rules"):
        load("--broker_rules=[]")


@pytest.mark.parametrize("name", ["pusher_app_id", "poll_interval", "ds_path"])
def test_options_of_parts_that_are_not_here_are_unknown(load: Load, name: str) -> None:
    with pytest.raises(ConfigurationError, match=f"^there is no option --{name}"):
        load(f"--{name}=x")


def test_a_word_that_is_no_option_is_refused(load: Load) -> None:
    with pytest.raises(ConfigurationError, match=r"^'true' is no option; options are written --name=value$"):
        load("--public", "true")
    with pytest.raises(ConfigurationError, match=r"^'--' is no option"):
        load("--")


def test_the_words_of_a_secret_are_not_shown(load: Load) -> None:
    with pytest.raises(ConfigurationError) as e:
        load("--secret", "correct", "horse")
    assert str(e.value) == "the word after --secret is no option; options are written --name=value"


def test_overrides_of_the_defaults_have_to_exist() -> None:
    assert defaults(port=5)["port"] == 5
    with pytest.raises(ConfigurationError, match=r"^there is no option prot; did you mean --port\?$"):
        defaults(prot=5)
