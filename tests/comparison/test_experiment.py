"""Experiment files: those that are shipped, what they may hold, and what is refused."""

from __future__ import annotations

import inspect
from pathlib import Path

import pytest

from ssole.comparison.compare import compare
from ssole.comparison.experiment import read_experiment
from ssole.comparison.request import make_arms
from ssole.config import ConfigError, apply_overrides, load
from ssole.config.budget import Budget

EXPERIMENTS = sorted((Path(__file__).parents[2] / "experiments").glob("*.yaml"))


@pytest.mark.parametrize("path", EXPERIMENTS, ids=lambda path: path.stem)
def test_shipped_experiments_are_complete(path: Path) -> None:
    values = read_experiment(path)
    for_all = {name: value for name, value in values.items() if name not in inspect.signature(compare).parameters}
    base = apply_overrides(load(values["recipe"]), for_all)
    arms = make_arms(values["methods"], base, projector="recipe")
    assert len({str(arm.config) for arm in arms}) == len(arms)  # no two arms train the same
    shared = [arm for arm in arms if arm.config.projector.layers and "model.projector_hidden" not in arm.pinned]
    assert all(arm.config.projector.hidden == base.projector.hidden for arm in shared)
    if "budget" in values:
        assert Budget.parse(values["budget"]).amount > 1


def test_settings_for_all_arms_stand_beside_the_options(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("set: {batch_size: 8}\nseeds: 2\nmethods: [ssole, simclr]\n")
    assert read_experiment(tmp_path / "a.yaml") == {"batch_size": 8, "seeds": 2, "methods": ["ssole", "simclr"]}


def test_a_setting_whose_name_is_a_number_is_unknown(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("set: {1: 2}\n")
    with pytest.raises(ConfigError, match="unknown setting '1'"):
        load("digits-m", **read_experiment(tmp_path / "a.yaml"))


def test_a_recipe_may_lie_beside_the_file(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "small.yaml").write_text("steps: 3\n")
    (tmp_path / "a.yaml").write_text("recipe: mine/small.yaml\nmethods: [ssole, simclr]\n")
    assert load(read_experiment(tmp_path / "a.yaml")["recipe"]).steps == 3


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("method: [ssole]", r"a\.yaml: unknown key 'method'\. Did you mean 'methods'\?"),
        ("set: 3", "set must be a mapping of settings, got 3"),
        ("[ssole]", "must hold a mapping of settings"),
        ("methods: {a: {loss.gamma: 0.5}, a: {loss.gamma: 1.0}}", r"a\.yaml .* line 1 has 'a' a second time"),
        ("set: {seeds: 5}", "seeds is no setting of the arms but an option"),
    ],
)
def test_a_wrong_experiment_is_refused_with_the_reason(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "a.yaml").write_text(text)
    with pytest.raises(ConfigError, match=words):
        read_experiment(tmp_path / "a.yaml")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("methods: ssole", "methods are a list of losses, or arms by name with their settings, got 'ssole'"),
        ("methods: 5", "got 5"),
        ("methods: [1, 2]", "methods are named by texts, got 1"),
        ("methods: {a: , b: }", "the arm 'a' needs settings, such as loss.name: simclr, or a loss module; got None"),
        ("seeds: two", "seeds must be a whole number, got 'two'"),
        ("budget: 600", "a budget is a time or a number, .*: got 600"),
        ("recipe: 7", "a recipe is a name, or the path of a YAML file, got 7"),
        ("projector: publshed", "got 'publshed'"),
    ],
)
def test_values_of_a_wrong_kind(tmp_path: Path, text: str, words: str) -> None:
    whole = "recipe: digits-m\nmethods: [ssole, simclr]\n"
    key = text.partition(":")[0]
    lines = [line for line in whole.splitlines() if not line.startswith(key)]
    (tmp_path / "a.yaml").write_text("\n".join([*lines, text]))
    with pytest.raises(ConfigError, match=words):
        compare(**read_experiment(tmp_path / "a.yaml"), out=tmp_path / "out", progress=False)
