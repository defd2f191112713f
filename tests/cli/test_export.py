"""`ssole export`: what it prints, and refused input."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command


def test_export_says_where_and_how(trained: Command) -> None:
    outcome = trained("export", "run", "--to", "timm")
    assert outcome.code == 0, outcome.err
    assert "run/export/timm: README.md, config.json, model.safetensors" in outcome.out
    assert "how to load it: run/export/timm/README.md" in outcome.out
    assert trained("export", "run", "--to", "torch-export", "--out", "there").code == 0
    assert Path("there/model.pt2").is_file()


def test_an_export_for_transformers_shows_nothing_of_theirs(trained: Command) -> None:
    pytest.importorskip("transformers", reason="transformers is not installed")
    assert trained("export", "run", "--to", "hf").err == ""


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["export", "run"], "--to"),
        (["export", "run", "--to", "keras"], "keras"),
        (["export", "nowhere", "--to", "timm"], "there is no nowhere"),
        (["export", "run", "--to", "timm", "--out", "photos"], "photos is not an empty folder"),
        (["export", "run", "--to", "torchvision"], "--to timm exports any backbone"),
    ],
)
def test_wrong_input_to_export(trained: Command, arguments: list[str], words: str) -> None:
    outcome = trained(*arguments)
    assert outcome.code == 2
    assert words in outcome.err
