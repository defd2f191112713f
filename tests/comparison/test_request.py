"""Arms, and the file that a comparison's folder remembers its request by."""

from __future__ import annotations

import copy
import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from torch import nn

import tiny
from ssole.comparison.request import Request, load_request, make_arms, save_request
from ssole.comparison.trial import resumable
from ssole.config import ConfigError
from ssole.config.budget import Budget
from ssole.errors import DiskError


def request() -> Request:
    arms = make_arms(["ssole", "vicreg"], tiny.config(), projector="recipe")
    budget = Budget.parse("9steps")
    return Request(arms=arms, data=("a", "b"), test=None, budget=budget, seeds=2, search=4)


def test_a_request_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_request(tmp_path, request())
    assert load_request(tmp_path) == request()
    save_request(tmp_path, request())  # the same again


def test_a_folder_whose_comparison_has_not_begun_is_free(tmp_path: Path) -> None:
    save_request(tmp_path, request())
    save_request(tmp_path, dataclasses.replace(request(), seeds=5))  # the first had a setting that failed
    assert load_request(tmp_path).seeds == 5
    (tmp_path / ".plan.json.0123abcd.ssole-tmp").touch()  # of a process that was killed
    save_request(tmp_path, request())
    (tmp_path / "plan.json").touch()
    with pytest.raises(ConfigError, match="not empty, and nothing is overwritten"):
        save_request(tmp_path, request(), what="tuning")
    (tmp_path / "plan.json").rename(tmp_path / "photo.png")
    with pytest.raises(ConfigError, match="not empty, and nothing is overwritten"):
        save_request(tmp_path, request())


def test_a_request_of_an_older_version_goes_on(tmp_path: Path) -> None:
    save_request(tmp_path, request())
    (tmp_path / "plan.json").touch()  # it has begun
    path = tmp_path / "comparison.yaml"
    saved = yaml.safe_load(path.read_text())
    for arm in saved["arms"].values():
        del arm["config"]["augment"]["early_share"]  # a setting that it did not have
    path.write_text(yaml.safe_dump(saved))
    save_request(tmp_path, request())
    assert load_request(tmp_path) == request()


def test_all_differences_are_named(tmp_path: Path) -> None:
    save_request(tmp_path, request())
    (tmp_path / "plan.json").touch()  # it has begun
    other = make_arms(["ssole", "simclr"], tiny.config(), projector="recipe")
    with pytest.raises(ConfigError, match=r"arms.vicreg: settings before, nothing now; arms.simclr: nothing before"):
        save_request(tmp_path, dataclasses.replace(request(), arms=other))


@pytest.mark.parametrize(
    ("names", "said"),
    [(("lambda", "Lambda"), "lambda and Lambda differ in capitals alone"), (("a", "a."), "no dot at its end")],
)
def test_arms_whose_folders_macos_or_windows_cannot_tell_apart_are_refused(names: tuple[str, str], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        make_arms({name: {} for name in names}, tiny.config(), projector="recipe")


@pytest.mark.parametrize("text", ["a: 1", "arms: 3", "arms: {}"])
def test_a_damaged_file_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "comparison.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"comparison\.yaml is damaged .*another folder"):
        load_request(tmp_path)


def test_nested_settings_are_those_with_dots() -> None:
    nested = {"loss": {"name": "ssole", "high_rank_weight": 1.0}, "model": {"projector_dim": 48}}
    dotted = {"loss.name": "ssole", "loss.high_rank_weight": 1.0, "model.projector_dim": 48}
    first, second = make_arms({"first": nested, "second": dotted}, tiny.config(), projector="recipe")
    assert first.config == second.config
    assert first.config.projector.dim == 48
    assert first.pinned == second.pinned == ("loss.high_rank_weight", "loss.name", "model.projector_dim")


@pytest.mark.parametrize(("given", "name"), [({1: 2}, "1"), ({"optim": {1: 2}}, "optim.1")])
def test_a_setting_whose_name_is_a_number_is_unknown(given: dict[str, int], name: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown setting '{name}'"):
        make_arms({"mine": given, "other": {"loss.name": "simclr"}}, tiny.config(), projector="recipe")


@pytest.mark.parametrize("name", ["epochs", "steps", "budget", "seed", "data", "eval_data", "knn_every"])
def test_an_arm_cannot_set_what_all_runs_share(name: str) -> None:
    with pytest.raises(ConfigError, match=f"{name} of the arm 'mine' would have no effect: "):
        make_arms({"mine": {name: 1}, "other": {"loss.name": "simclr"}}, tiny.config(), projector="recipe")


def test_initial_weights_are_found_from_any_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    own = {"loss.name": "simclr", "init": "runs/other"}
    shared, other = make_arms({"a": {}, "b": own}, tiny.config(init="runs/first"), projector="recipe")
    assert (shared.config.init, other.config.init) == (str(tmp_path / "runs/first"), str(tmp_path / "runs/other"))
    pretrained, _ = make_arms({"a": {"init": "timm"}, "b": own}, tiny.config(), projector="recipe")
    assert pretrained.config.init == "timm"


class Mine(nn.Module):
    """A loss whose settings its `repr` does not show."""

    def __init__(self, weight: Any, start: float = 0.0) -> None:
        super().__init__()
        self.weight = weight
        self.register_buffer("centre", torch.full((3,), start))
        self.layer = nn.Linear(3, 2)  # with random weights


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (Mine(1.0), Mine(8.0)),
        (Mine(1.0), Mine(1.0, start=2.0)),
        (Mine(np.float32(1.0)), Mine(np.float32(8.0))),
        (Mine([1.0, abs]), Mine([8.0, abs])),
        (Mine({"align": 1.0}), Mine({"align": 8.0})),
        (Mine(np.ones(2000)), Mine(np.linspace(1.0, 1.000001, 2000))),
        (Mine(torch.ones(2)), Mine(torch.tensor([1.0, 1.000001]))),
    ],
    ids=["attribute", "weights", "numpy", "list", "dict", "array", "tensor"],
)
def test_losses_of_ones_own_are_told_apart(one: Mine, other: Mine, tmp_path: Path) -> None:
    def with_loss(loss: Mine) -> Request:
        return dataclasses.replace(request(), arms=make_arms({"a": {}, "b": loss}, tiny.config(), projector="recipe"))

    save_request(tmp_path, with_loss(one))
    (tmp_path / "plan.json").touch()  # it has begun
    save_request(tmp_path, with_loss(copy.deepcopy(one)))
    with pytest.raises(ConfigError, match="holds another comparison"):
        save_request(tmp_path, with_loss(other))


def test_a_full_disk_before_there_is_anything_to_go_on_with(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "write_bytes", full)
    with (
        pytest.raises(DiskError, match=r"^cannot make the comparison .*No space left on device: .*comparison\.yaml'$"),
        resumable(tmp_path, "ssole compare --resume here"),
    ):
        save_request(tmp_path, request())
