"""Runs without a recipe: settings from images, machine and budget, with their reasons in config.yaml."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest

import ranks
import tiny
from ssole import api
from ssole.config import ConfigError, PretrainConfig, load, to_dict
from ssole.doctor import choose as module
from ssole.doctor.choose import choose, suggest_for
from ssole.errors import DataError
from ssole.training.run import Run

SMALL = {"model.projector_dim": 8, "model.projector_hidden": 8, "batch_size": 4, "steps": 2}


def test_without_data_or_with_a_recipe_nothing_is_chosen() -> None:
    assert choose(None, None, {}) == ("digits-m", load("digits-m"))
    assert choose("digits-m", None, {"seed": 3})[1].seed == 3
    name, config = choose("nowhere/", "photos", {})
    assert (name, config.reasons) == ("photos", ())


def test_a_run_without_a_recipe(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    photos = tiny.write_folder(tmp_path / "photos", size=80)
    run = api.pretrain(photos, out=tmp_path / "run", **SMALL)
    assert run.config.reasons[0] == "the images are large (median shorter side 80 px)"
    assert run.config.reasons[-1] == "as given: batch_size, model.projector_dim, model.projector_hidden, steps"
    assert run.config.augment.crops[0].size == 64
    told = capsys.readouterr().err
    assert all(f"- {reason}\n" in told for reason in run.config.reasons)
    assert "22 images are too few for batches of 128" in (run.path / "config.yaml").read_text()
    run.backbone_path.unlink()
    assert api.resume(run, progress=False).finished


def test_the_command_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[tuple[PretrainConfig, Path]] = []

    def start(config: PretrainConfig, out: Path, **given: Any) -> Run:
        seen.append((config, out))
        raise ConfigError("this is as far as the test goes")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(module, "_TRIAL_SECONDS", 0.1)
    monkeypatch.setattr(api, "start", start)
    tiny.write_folder(tmp_path / "photos", size=40)
    tiny.write_folder(tmp_path / "large", size=80)
    assert tiny.main("pretrain", "--data", "photos", "--budget", "3s", "--optim.lr", "0.5", "--device", "cpu") == 2
    assert tiny.main("pretrain", "--data", "photos", "--recipe", "photos", "--budget", "3s") == 2
    words = "--no-deterministic --loss.no-coupled --model.backbone-args.layers 1 1 1 2 --augment.crops.0.scale 0.5 0.9"
    words += " --views 3 --eval-every 7 --preset aerial --augment.hue 0.2 --augment.early-size 36 --batch_size=8"
    assert tiny.main("pretrain", "--data", "large", "--device", "cpu", *words.split()) == 2
    assert tiny.main("pretrain", "--data", "digits-m", "--steps", "3") == 2
    (config, out), (given, _), (many, _), (plain, _) = seen
    assert (config.budget, config.compile, config.optim.lr, config.augment.crops[0].size) == ("3s", "never", 0.5, 32)
    assert any("fit into 3s" in reason for reason in config.reasons)
    assert config.reasons[-1] == "as given: optim.lr"
    assert out == Path("runs/small-images")
    assert (given.augment.crops[0].size, given.reasons) == (224, ())
    assert (many.deterministic, many.loss.coupled, many.batch_size, many.knn_every) == (False, False, 8, 7)
    assert many.model.backbone_args["layers"] == [1, 1, 1, 2]
    assert (many.augment.crops[0].scale, many.augment.crops[0].count, many.augment.crops[0].size) == ((0.5, 0.9), 3, 64)
    assert (many.augment.turn, many.augment.hue, many.augment.early_size) == (0.75, 0.2, 36)
    names = "augment.crops.0.scale, augment.early_size, augment.hue, batch_size, deterministic, knn_every, loss.coupled"
    assert many.reasons[-1] == f"as given: {names}, model.backbone_args.layers, preset, views"
    assert (plain.steps, plain.augment, plain.reasons) == (3, load("digits-m").augment, ())


def test_settings_that_suit_the_images_and_not_the_default_recipe() -> None:
    images = np.random.default_rng(0).integers(0, 256, (8, 70, 70, 5), np.uint8)
    overrides = {"channels": 5, "augment.early_size": 48, "device": "cpu"}
    _, config = choose(images, None, overrides)
    assert (config.channels, config.augment.hue, config.augment.early_size) == (5, 0, 48)
    with pytest.raises(ConfigError, match="unknown setting 'chanels'"):
        choose(images, None, {**overrides, "chanels": 5})


def test_a_budget_measures_this_machine() -> None:
    found = suggest_for(tiny.images(size=30), {"budget": "2s", "device": "cpu"})
    assert found.recipe in ("small-images", "small-images-resnet18")
    assert found.overrides["budget"] == "2s"


def test_bad_input(tmp_path: Path) -> None:
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.png").write_bytes(b"no picture")
    with pytest.raises(DataError, match=r"holds no image that can be read: a\.png: "):
        suggest_for(tmp_path / "photos", {})
    with pytest.raises(ConfigError, match="such as 90s, 10m or 2h, got '300steps'"):
        suggest_for(tiny.images(), {"budget": "300steps"})
    with pytest.raises(ConfigError, match="device"):
        suggest_for(tiny.images(), {"device": "tpu"})
    with pytest.raises(ConfigError, match="leave out either budget or steps"):
        choose(np.zeros((8, 9, 9, 3), np.uint8), None, {"budget": "1s", "steps": 3, "device": "cpu"})


def choose_in_a_process(out: Path, seen: Path) -> None:
    def watched(*arguments: Any, **given: Any) -> Any:
        (seen / os.environ["RANK"]).touch()
        return suggest_for(*arguments, **given)

    with mock.patch.object(module, "suggest_for", watched):
        name, config = choose(tiny.images(), None, {"budget": "1h", "device": "cpu", "seed": 3})
    (out / os.environ["RANK"]).write_text(json.dumps([name, to_dict(config)]))


@pytest.mark.slow
def test_the_first_of_many_processes_chooses_for_all(tmp_path: Path) -> None:
    for name in ("out", "seen"):
        (tmp_path / name).mkdir()
    ranks.run(2, choose_in_a_process, tmp_path / "out", tmp_path / "seen")
    first, second = (json.loads((tmp_path / "out" / rank).read_text()) for rank in ("0", "1"))
    assert first == second
    assert first[1]["seed"] == 3
    assert [path.name for path in (tmp_path / "seen").iterdir()] == ["0"]
