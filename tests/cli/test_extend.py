"""`ssole extend`: its options, what it prints, and wrong input."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from commands import TINY, Command

from ssole import extending
from ssole.training.pace import Extension, extensions
from ssole.training.run import Run


def test_the_command(command: Command) -> None:
    assert command(*TINY, "--out", "run").code == 0
    told = command("extend", "run", "--steps", "2", "--factor", "0.25")
    assert told.code == 0
    assert "14 steps in" in told.out
    assert "14 steps of 4 x 2 views, on cpu in float32, going on after step 12" in told.err
    assert extensions(Run(Path("run"))) == [Extension(step=12, total=14, factor=0.25)]
    told = command("extend", "photos", "--steps", "2")
    assert told.code == 2
    assert "is not a run folder" in told.err


def test_every_option_reaches_the_function(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def watched(run: Any, **given: Any) -> Run:
        asked.append((run, given))
        raise ValueError("stop here")

    monkeypatch.setattr(extending, "extend", watched)
    nothing: dict[str, Any] = {"data": None, "eval_data": None, "allow_changes": ()}
    command("extend", "run", "--epochs", "3")
    assert asked.pop() == (Path("run"), {"epochs": 3, "steps": None, "factor": extending.FACTOR, **nothing})
    several = ["--data", "a.tar", "b.tar", "--eval-data", "test", "--allow-changes", "images", "version"]
    outcome = command("extend", "run", "--steps", "9", "--factor", "0.5", *several)
    assert outcome.code == 2
    assert "stop here" in outcome.err
    given = {"data": ["a.tar", "b.tar"], "eval_data": "test", "allow_changes": ("images", "version")}
    assert asked.pop() == (Path("run"), {"epochs": None, "steps": 9, "factor": 0.5, **given})


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ([], "give one of --epochs and --steps"),
        (["--epochs", "1", "--steps", "1"], "give one of --epochs and --steps"),
        (["--steps", "two"], "'two'"),
        (["--steps", "2", "--factor", "0"], "positive and finite, got 0.0"),
        (["--steps", "2", "--allow-changes", "code"], "'code'"),
        (["--epoch", "2"], "--epochs"),
    ],
)
def test_wrong_input_to_extend(command: Command, options: list[str], words: str) -> None:
    Path("run").mkdir()
    Path("run/config.yaml").write_text("steps: 3\n")
    outcome = command("extend", "run", *options)
    assert outcome.code == 2
    assert words in outcome.err
    assert [path.name for path in Path("run").iterdir()] == ["config.yaml"]


def test_the_help_explains_every_option(command: Command) -> None:
    outcome = command("extend", "--help")
    assert outcome.code == 0
    for words in ("RUN", "--epochs INT", "--steps INT", "--factor", "--data", "--eval-data", "--allow-changes"):
        assert words in outcome.out
    assert re.search(
        rf"--factor FLOAT[ │\n]+Factor of the run's learning rates\. \(default: {extending.FACTOR}\)", outcome.out
    )
    assert "ssole extend runs/mine --epochs 50" in outcome.out
