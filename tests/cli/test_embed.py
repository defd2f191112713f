"""`ssole embed`: files of features, and refused input."""

from __future__ import annotations

import numpy as np
import pytest
from commands import Command


def test_embed(trained: Command) -> None:
    outcome = trained("embed", "run", "--out", "all.npz")
    assert outcome.code == 0, outcome.err
    assert "60 images, 16 features each: all.npz" in outcome.out
    with np.load("all.npz", allow_pickle=False) as saved:
        assert saved["array"].shape == (60, 16)
        assert list(saved["classes"]) == ["cat", "dog"]
        assert [name.split("/")[0] for name in saved["ids"]] == [saved["classes"][label] for label in saved["labels"]]
    assert trained("embed", "run", "--data", "unlabeled", "--out", "some.npz").code == 0
    with np.load("some.npz", allow_pickle=False) as saved:
        assert "labels" not in saved
        assert len(saved["ids"]) == 30


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["embed", "run", "--device", "cuda:99"], "'cuda:99' was asked for"),
        (["embed", "run", "--out", "file.csv"], "file.csv"),
        (["embed", "nowhere"], "there is no nowhere"),
    ],
)
def test_wrong_input_to_embed(trained: Command, arguments: list[str], words: str) -> None:
    outcome = trained(*arguments)
    assert outcome.code == 2
    assert words in outcome.err
