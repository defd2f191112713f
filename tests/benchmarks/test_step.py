"""The benchmark of training steps, run small: a roofline that trains as pretraining does, time put where it went."""

from __future__ import annotations

import importlib
import json
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from ssole.training import step as step_module
from ssole.training.feed import make_plan
from ssole.views import make_views
from tiny import config, images, recipe, start

BENCHMARKS = Path(__file__).parents[2] / "benchmarks"


@pytest.fixture
def step(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.setattr(sys, "path", [str(BENCHMARKS), *sys.path])
    torch.set_num_threads(1)
    return importlib.import_module("step")


def test_the_roofline_does_a_step_of_pretraining(step: ModuleType, tmp_path: Path) -> None:
    """Fed the views of the first step, it reaches the weights of a run of one step."""
    trained = load_file(start(tmp_path / "run", steps=1).backbone_path)
    settings = config()
    roofline = step.Roofline(settings, batches=1)
    _, epoch, ids = next(make_plan(settings, len(images())).batches(0))
    batch = torch.from_numpy(images()).permute(0, 3, 1, 2)[ids]
    roofline.views = [make_views(batch, ids, recipe=settings.augment, seed=settings.seed, epoch=epoch)]
    assert roofline(1) > 0
    reached = roofline.learner.encoder.backbone.state_dict()
    assert set(trained) == set(reached)
    for name, weights in trained.items():
        torch.testing.assert_close(reached[name], weights, rtol=1e-4, atol=1e-6, msg=name)


def test_the_roofline_can_train_on_its_noise(step: ModuleType) -> None:
    settings = config()
    (views,) = step.random_views(settings, 0, torch.device("cpu"))
    assert views.shape == (4, 2, 3, 8, 8)
    assert float(views.std()) == pytest.approx(1.0, abs=0.1)
    between = torch.corrcoef(torch.stack([views[:, 0].flatten(), views[:, 1].flatten()]))[0, 1]
    assert float(between) == pytest.approx(0.64, abs=0.1)
    roofline = step.Roofline(settings)
    roofline(30)  # a loss that is not finite would be an error
    parts = step.time_of_roofline(roofline, 2)
    assert set(parts) == {"forward", "loss", "backward", "optimizer"}
    assert min(parts.values()) > 0


@pytest.mark.slow
def test_time_of_the_others_is_not_counted_as_training(step: ModuleType) -> None:
    asked = []

    def other(steps: int) -> float:
        asked.append(steps)
        time.sleep(1.0)
        return 0.5

    rates = step.compete(config(), images(), {"other": other}, steps=2, blocks=2)
    assert asked == [2, 2, 2]  # the first warms up
    assert rates["other"] == [2 * 4 / 0.5] * 2
    assert len(rates["ssole"]) == 2
    assert min(rates["ssole"]) > 2 * 4 / 1.0


def test_time_is_put_where_it_went(step: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    def slow_views(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        time.sleep(0.05)
        return make_views(*args, **kwargs)

    original = slow_views
    monkeypatch.setattr(step_module, "make_views", slow_views)
    parts = step.where_time_goes(config(log_every=1), images(), steps=5)
    expected = {"images", "views", "forward", "loss", "backward", "optimizer", "log", "checkpoint", "rest"}
    assert set(parts) == expected
    assert min(parts.values()) >= 0
    assert parts["views"] >= 50
    assert parts["rest"] < 50
    assert step_module.make_views is original  # what was replaced for the time is back


@pytest.mark.parametrize("bfloat16", [False, True])
def test_lightly_trains(step: ModuleType, bfloat16: bool) -> None:
    pytest.importorskip("lightly")
    lightly = step.Lightly(config(), images(), bfloat16=bfloat16)
    before = [weights.clone() for weights in lightly._model.parameters()]
    for _ in range(2):
        assert lightly(2) > 0
    changed = [not torch.equal(*pair) for pair in zip(before, lightly._model.parameters(), strict=True)]
    assert all(changed)
    assert all(weights.isfinite().all() for weights in lightly._model.parameters())


@pytest.mark.slow
def test_small_benchmark(step: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    pytest.importorskip("matplotlib")
    out, plot = tmp_path / "step.json", tmp_path / "step.png"
    adamw = recipe(tmp_path, optim={"name": "adamw", "lr": 0.001, "final_lr": 0.0})
    small = ["--recipe", adamw, "--batch", "6", "4", "--blocks", "2", "--steps", "2", "--threads", "1"]
    small += ["--compile", "never"]
    monkeypatch.setattr(sys, "argv", ["step.py", *small, "--out", str(out), "--plot", str(plot)])
    step.main()
    record = json.loads(out.read_text())
    assert [(row["views"], row["batch_size"], row["precision"], row["optimizer"]) for row in record["rows"]] == [
        (2, 6, "float32", "adamw"),
        (2, 6, "float32", "sgd"),
        (4, 4, "float32", "adamw"),
    ]
    for row in record["rows"]:
        rates = row["images_per_second"]
        assert {"ssole", "roofline"} <= set(rates)
        assert all(len(values) == 2 and min(values) > 0 for values in rates.values())
        assert set(row["ssole_has"]) == set(rates) - {"ssole"}
        assert set(row["ms_a_step"]["roofline"]) < set(row["ms_a_step"]["ssole"])
    assert plot.stat().st_size > 0


def test_every_number_of_views_needs_a_batch_size(
    step: ModuleType, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["step.py", "--views", "2", "4", "8"])
    with pytest.raises(SystemExit):
        step.main()
    assert "--batch needs a number for each of --views" in capsys.readouterr().err
