"""`ssole select`: the list it writes, images given, and refused input."""

from __future__ import annotations

import pytest
from commands import Command

from ssole.data.sources import open_source


def test_select(trained: Command) -> None:
    outcome = trained("select", "run", "--count", "7", "--out", "labeled/first.csv")
    assert outcome.code == 0, outcome.err
    assert "7 of 60 images: labeled/first.csv" in outcome.out
    assert "every image has a cosine similarity of at least" in outcome.out
    source = open_source("labeled/first.csv")
    first = [source.id(i) for i in range(7)]
    assert len({*first}) == 7
    assert source.classes == ["cat", "dog"]
    given = ["--given", "labeled/first.csv", "--out", "labeled/more.csv"]
    assert "or those given" in trained("select", "run", "--count", "3", *given).out
    more = open_source("labeled/more.csv")
    assert not {more.id(i) for i in range(3)} & {*first}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["select", "run", "--count", "61"], "count is 61, and run/index has 60 images"),
        (["select", "run", "--given", "nowhere.csv"], "nowhere.csv"),
        (["select", "run", "--out", "tiny.yaml"], "tiny.yaml exists, and labels that were filled in would be lost"),
        (["select", "run", "--out", "nowhere/list.csv"], "there is no folder nowhere to write list.csv to"),
        (["select", "photos"], "neither an index nor a run folder"),
    ],
)
def test_wrong_input_to_select(trained: Command, arguments: list[str], words: str) -> None:
    outcome = trained(*arguments)
    assert outcome.code == 2
    assert words in outcome.err
