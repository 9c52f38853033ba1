"""Path patterns and what they match."""

from __future__ import annotations

import pytest

from anycable_tx.errors import ConfigurationError
from anycable_tx.transports.paths import PathPatterns

THREE = ["/a/*", "/t/{x}/cable", "/n/{id:[0-9]+}"]


@pytest.mark.statement("HE-3")
@pytest.mark.parametrize("path", ["/a/b/c", "/a/", "/t/q/cable", "/t//cable", "/n/12"])
def test_patterns_accept(path):
    assert PathPatterns(THREE).match(path)


@pytest.mark.statement("HE-3")
@pytest.mark.parametrize(
    "path", ["/a", "/n/x", "/n/", "/n/12/3", "/n/1x", "/cable/", "/t/q/r/cable", "/t/q/cable/", "", "/A/b", "a/b"]
)
def test_patterns_refuse(path):
    assert not PathPatterns(THREE).match(path)


def test_an_exact_path_matches_itself_only():
    patterns = PathPatterns(["/cable"])
    assert patterns.match("/cable")
    for other in ("/cable/", "/Cable", "/cabl", "//cable", "cable"):
        assert not patterns.match(other)


def test_blank_patterns_are_dropped_and_a_missing_slash_is_added():
    patterns = PathPatterns([" cable ", "", "  ", "t/{x}"])
    assert patterns.find("/cable") == "/cable"
    assert patterns.find("/t/1") == "/t/{x}"
    assert not patterns.match("/")
    assert not PathPatterns([]).match("/cable")


@pytest.mark.parametrize(
    ("path", "winner"),
    [
        ("/s/x", "/s/x"),
        ("/s/12", "/s/{id:[0-9]+}"),
        ("/s/ab", "/s/{id}"),
        ("/s/ab/c", "/s/*"),
        ("/r/x", "/*"),
        ("/m/pre-1", "/m/pre-{n}"),
        ("/m/other", "/{any}/other"),
    ],
)
def test_the_most_specific_pattern_wins(path, winner):
    patterns = ["/*", "/s/*", "/s/{id}", "/s/{id:[0-9]+}", "/s/x", "/m/pre-{n}", "/{any}/other"]
    assert PathPatterns(patterns).find(path) == winner
    assert PathPatterns(reversed(patterns)).find(path) == winner


def test_a_regexp_stays_within_its_segment():
    patterns = PathPatterns(["/x/{rest:.+}", "/y/{year:[0-9]{4}}/v{v:a|b}"])
    assert patterns.match("/x/1")
    assert not patterns.match("/x/1/2")
    assert patterns.match("/y/2024/vb")
    assert not patterns.match("/y/20245/vb")


@pytest.mark.parametrize(
    ("pattern", "complaint"),
    [
        ("/a/*/b", r"'\*' is accepted only at the end"),
        ("/a*", r"'\*' is accepted only at the end"),
        ("/a/**", r"'\*' is accepted only at the end"),
        ("/{", "without its"),
        ("/{a", "without its"),
        ("/a}", "without its"),
        ("/{}", "no placeholder name"),
        ("/{:[0-9]}", "no placeholder name"),
        ("/{a b}", "no placeholder name"),
        ("/{a:[}", "the regexp of 'a' is wrong"),
        ("/{a:(?P<x>1)}{b:(?P<x>2)}", "no regexp"),
    ],
)
def test_a_pattern_that_means_nothing_is_refused_by_name(pattern, complaint):
    with pytest.raises(ConfigurationError, match=complaint) as caught:
        PathPatterns(["/fine", pattern])
    assert repr(pattern) in str(caught.value)
