"""`ssole tune`: the list of trials, the recipe, refused input."""

from __future__ import annotations

from pathlib import Path

import pytest
from commands import Command


@pytest.mark.slow
def test_tune_says_what_it_chose_and_how_to_train_with_it(command: Command) -> None:
    given = ("--recipe", "tiny.yaml", "--data", "photos", "--budget", "4steps", "--trials", "2", "--out", "tuned")
    outcome = command("tune", *given)
    assert outcome.code == 0, outcome.err
    for words in (
        "trial 0: ",
        "trial 1: ",
        "* has the best",
        "rank correlation with kNN",
        "such a choice found 7 % of what labels would have gained, in four searches",
        "tuned/tuned.yaml",
    ):
        assert words in outcome.out
    assert sum(line.startswith("* trial") for line in outcome.out.splitlines()) == 1
    outcome = command("pretrain", "--recipe", "tuned/tuned.yaml", "--steps", "1", "--out", "run")
    assert outcome.code == 0, outcome.err
    assert Path("run/backbone.safetensors").is_file()


def test_wrong_input_to_tune(command: Command) -> None:
    for arguments, words in (
        (("--trials", "1"), "tuning compares 2 trials or more, got 1"),
        (("--budget", "soon"), "a budget is a time or a number"),
        (("--data", "nowhere"), "nowhere"),
    ):
        outcome = command("tune", "--recipe", "tiny.yaml", *arguments, "--out", "tuned")
        assert outcome.code == 2
        assert words in outcome.err
