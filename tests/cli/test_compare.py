"""`ssole compare`: methods, experiment files, going on, refused input."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from commands import Command

import tiny

OPTIONS = ("--recipe", "tiny.yaml", "--data", "labeled", "--seeds", "1", "--search", "0")


@pytest.fixture
def compare(command: Command) -> Command:
    tiny.write_folder(Path("labeled"), 60)
    return lambda *arguments: command("compare", *arguments)


def test_methods_and_resume(compare: Command) -> None:
    outcome = compare("--methods", "ssole, simclr", *OPTIONS, "--budget", "4steps", "--out", "out")
    assert outcome.code == 0, outcome.err
    for word in ("ssole", "simclr", "kNN, %", "linear, %", "memory", "best", "saved: out/comparison.json"):
        assert word in outcome.out
    assert "1 run of 4 steps" in outcome.err
    assert Path("out/accuracy-by-images.png").is_file()
    again = compare("--resume", "out")
    assert again.code == 0, again.err
    assert again.out == outcome.out


def test_an_experiment_file_and_options_that_override_it(compare: Command) -> None:
    experiment = {
        "recipe": "tiny.yaml",
        "data": "labeled",
        "budget": "99steps",
        "seeds": 1,
        "search": 0,
        "set": {"batch_size": 5},
        "methods": {"low": {"loss.high_rank_weight": 0.5}, "high": {"loss.high_rank_weight": 2.0}},
    }
    Path("weights.yaml").write_text(yaml.safe_dump(experiment))
    outcome = compare("weights.yaml", "--budget", "15images", "--set", "optim.lr=0.2", "log_every=3")
    assert outcome.code == 0, outcome.err
    saved = json.loads(Path("runs/weights/comparison.json").read_text())
    assert saved["arms"]["low"]["steps"] == 3
    config = saved["request"]["arms"]["high"]["config"]
    assert (config["batch_size"], config["optim"]["lr"], config["log_every"]) == (5, 0.2, 3)
    assert config["loss"]["high_rank_weight"] == 2.0


def test_some_arms_of_an_experiment(compare: Command) -> None:
    arms = {
        name: {"loss.high_rank_weight": weight} for name, weight in {"low": 0.5, "middle": 1.0, "high": 2.0}.items()
    }
    Path("weights.yaml").write_text(yaml.safe_dump({"methods": arms}, sort_keys=False))
    outcome = compare("weights.yaml", "--methods", "high, low", *OPTIONS, "--budget", "3steps")
    assert outcome.code == 0, outcome.err
    saved = json.loads(Path("runs/weights/comparison.json").read_text())
    assert list(saved["arms"]) == ["high", "low"]
    outcome = compare("weights.yaml", "--methods", "high,lower", *OPTIONS)
    assert outcome.code == 2
    assert "the experiment has no arm 'lower'; there are: low, middle, high" in outcome.err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name the methods to compare"),
        (["--methods", "ssole"], "two different methods"),
        (["--methods", "ssole,simcrl"], "Did you mean 'simclr'?"),
        (["--methods", "ssole,simclr", "--budget", "long"], "got 'long'"),
        (["--methods", "ssole,simclr", "--set", "lr"], "SETTING=VALUE, such as optim.lr=0.02, got 'lr'"),
        (["--methods", "ssole,simclr", "--set", "optim.lrr=1"], "optim.lrr"),
        (["--methods", "ssole,simclr", "--set", "optim.lr=[1"], "--set optim.lr=[1: the value is not valid YAML"),
        (["--methods", "ssole,simclr", "--set", "seeds=5"], "seeds is no setting of the arms but an option"),
        (["--methods", "ssole,simclr", "--recipe", "nope"], "no recipe 'nope'"),
        (["nowhere.yaml"], "there is no experiment nowhere.yaml"),
        (["tiny.yaml"], "tiny.yaml: unknown key"),
        (["--resume", "photos"], "photos is not the folder of a comparison"),
        (["--resume", "out", "--seeds", "2"], "leave the other options out"),
        (["--resume=out", "--seeds=2"], "leave the other options out"),
    ],
)
def test_refused_in_one_line(compare: Command, arguments: list[str], words: str) -> None:
    outcome = compare(*arguments)
    assert outcome.code == 2
    assert words in outcome.err
    assert outcome.err.count("\n") == 1
