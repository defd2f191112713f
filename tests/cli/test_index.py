"""`ssole index`: what it writes and prints, and refused input."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command


def test_index(trained: Command) -> None:
    outcome = trained("index", "run")
    assert outcome.code == 0, outcome.err
    assert "60 images, 16 features each: run/index (" in outcome.out
    outcome = trained("index", "run/backbone.safetensors", "--data", "unlabeled", "--out", "other", "--half")
    assert outcome.code == 0, outcome.err
    assert Path("other/index.json").is_file()


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["index", "nowhere"], "there is no nowhere"),
        (["index", "run/backbone.safetensors", "--out", "other"], "does not say which images to use: pass --data"),
        (["index", "run", "--out", "photos"], "photos is not an empty folder"),
    ],
)
def test_wrong_input_to_index(trained: Command, arguments: list[str], words: str) -> None:
    outcome = trained(*arguments)
    assert outcome.code == 2
    assert words in outcome.err
