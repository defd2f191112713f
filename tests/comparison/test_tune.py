"""Tuning without labels: equal trials, the best figure wins, a usable recipe, interruption, refused input."""

from __future__ import annotations

import importlib.util
import json
import os
import re
import shutil
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from filelock import FileLock

import ssole
import tiny
from ssole.cli.tune import Tune as command
from ssole.comparison import tune as module
from ssole.comparison.plan import settings_text
from ssole.comparison.tune import FIGURE, stronger, tune
from ssole.config import ConfigError, Crop, ViewRecipe, load
from ssole.config.recipes import read_mapping
from ssole.errors import DataError
from ssole.evaluation.results import LABEL_FREE, METRICS
from ssole.evaluation.verdict import CORRELATION
from ssole.training.run import Run


def tuned(folder: Path, **given: object) -> module.Tuning:
    recipe = tiny.recipe(folder)
    how = {"recipe": recipe, "budget": "9steps", "trials": 3, "out": folder / "out", "progress": False, **given}
    return tune(tiny.images(), **how)  # type: ignore[arg-type]


def test_trials_are_equal_and_the_best_figure_wins(tmp_path: Path) -> None:
    found = tuned(tmp_path)
    assert [trial.steps for trial in found.trials] == [3, 3, 3]
    assert found.trials[0].settings == {}
    assert {"optim.lr", "augment.crops.0.scale"} <= found.trials[1].settings.keys()
    assert set(found.trials[0].scores) == set(LABEL_FREE)
    sign = 1 if CORRELATION[FIGURE] > 0 else -1
    assert found.chosen == max(range(3), key=lambda trial: sign * found.trials[trial].scores[FIGURE])
    config = load(found.recipe)
    for name, value in found.trials[found.chosen].settings.items():
        if name.startswith("optim."):
            assert getattr(config.optim, name.removeprefix("optim.")) == value
    why = f"of 3 trials, this had the best {METRICS[FIGURE]} (ssole tune)"
    assert config.reasons == (f"{settings_text(found.trials[found.chosen].settings)}: {why}",)
    assert config.steps == load(tiny.recipe(tmp_path)).steps  # the length is the recipe's, not a trial's
    assert ssole.pretrain(tiny.images(), recipe=found.recipe, steps=1, out=tmp_path / "run", progress=False).finished


@pytest.mark.slow
def test_without_a_recipe_the_data_decide(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny_network = {"model.projector_dim": 8, "model.projector_hidden": 8, "batch_size": 4, "device": "cpu"}
    how: dict[str, Any] = {"trials": 2, "budget": "2steps", "out": tmp_path / "out", **tiny_network}
    found = tune(tiny.images(size=40), **how)
    config = load(found.recipe)
    assert (config.augment.hflip, config.augment.crops[0].size) == (0.5, 32)  # of small-images; digits-m has no flips
    assert config.reasons[0] == "the images are small (median shorter side 40 px)"
    assert capsys.readouterr().err.count(config.reasons[0]) == 1  # and not again by each trial
    saved = read_mapping(tmp_path / "out" / "tuning.yaml")
    assert (
        saved["arms"]["tune"]["config"]["reasons"] == []
    )  # they may name the memory that was free, which another time is not the same


@pytest.mark.slow
def test_it_goes_on_and_reads_no_labels(tmp_path: Path) -> None:
    found = tuned(tmp_path)
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")}
    record = tmp_path / "out" / "trial-2" / "trial.json"
    again = json.loads(record.read_text())
    record.unlink()  # as after an interruption between training and judging
    repeated = tuned(tmp_path)
    assert (repeated.chosen, repeated.trials[2].steps) == (found.chosen, 3)  # trials stay equal to the first
    assert json.loads(record.read_text())["scores"] == again["scores"]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "out").rglob("*.safetensors")} == before
    labelled = tune(
        str(tiny.write_folder(tmp_path / "labelled", 22)),
        recipe=tiny.recipe(tmp_path),
        budget="2steps",
        trials=2,
        out=tmp_path / "with-labels",
        progress=False,
    )
    assert not {"knn20", "linear"} & labelled.trials[0].scores.keys()


def test_a_folder_is_for_one_tuning(tmp_path: Path) -> None:
    tuned(tmp_path, budget="2steps", trials=2)
    with pytest.raises(ConfigError, match=r"holds another tuning.*config\.seed: 0 before, 1 now"):
        tuned(tmp_path, budget="2steps", trials=2, seed=1)
    with pytest.raises(ConfigError, match=r"holds another tuning.*budget\.amount: 2\.0 before, 90\.0 now"):
        tuned(tmp_path, budget="90steps", trials=2)
    with pytest.raises(ConfigError, match=r"holds another tuning.*search: 2 before, 3 now"):
        tuned(tmp_path, budget="2steps", trials=3)
    other = tmp_path / "mine" / "trial-0"
    other.mkdir(parents=True)
    (other / "photo.png").write_bytes(b"mine")
    with pytest.raises(ConfigError, match="mine is not empty, and nothing is overwritten"):
        tuned(tmp_path, budget="2steps", trials=2, out=tmp_path / "mine")
    assert (other / "photo.png").read_bytes() == b"mine"


def test_a_budget_that_was_too_small_is_not_in_the_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssole.comparison.plan.step_seconds", lambda *_, **__: 0.5)
    with pytest.raises(ConfigError, match=r"too small for 3 trials of steps that take 0\.5 s"):
        tuned(tmp_path, budget="1s")
    assert [trial.steps for trial in tuned(tmp_path, budget="6s").trials] == [3, 3, 3]


def test_a_trial_on_relative_paths_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tiny.write_folder(tmp_path / "photos", 22)
    monkeypatch.chdir(tmp_path)
    how: dict[str, Any] = {"recipe": tiny.recipe(tmp_path), "budget": "2steps", "trials": 2, "out": "out"}
    tune("photos/*/*.png", **how, progress=False)
    Path("out/trial-1/trial.json").unlink()
    Path("out/trial-1/backbone.safetensors").unlink()  # as if it had been stopped
    assert tune("photos/*/*.png", **how, progress=False).trials[1].error is None


@pytest.mark.slow
def test_it_goes_on_with_touched_images_only_if_told(tmp_path: Path) -> None:
    photos = tiny.write_folder(tmp_path / "photos", 22)
    how: dict[str, Any] = {"recipe": tiny.recipe(tmp_path), "budget": "2steps", "trials": 2, "out": tmp_path / "out"}
    tune(photos, **how, progress=False)
    for path in photos.rglob("*.png"):
        os.utime(path, (0, 0))
    assert len(tune(photos, **how, progress=False).trials) == 2  # finished trials are only read
    shutil.rmtree(tmp_path / "out" / "trial-1")
    with pytest.raises(DataError, match="--allow-changes images"):
        tune(photos, **how, progress=False)
    with pytest.warns(UserWarning, match="goes on with them"):
        assert tune(photos, **how, progress=False, allow_changes=["images"]).trials[1].error is None


def test_two_processes_on_one_folder_are_refused(tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with FileLock(tmp_path / "out" / ".lock"), pytest.raises(ConfigError, match="another process"):
        tuned(tmp_path)


def test_when_stopped_it_names_the_folder_to_go_on_in(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def stopped(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(module, "run_trial", stopped)
    with pytest.raises(KeyboardInterrupt, match=rf"the same command and --out {re.escape(str(tmp_path / 'out'))}"):
        tuned(tmp_path)


@pytest.mark.slow
def test_a_trial_that_fails_is_passed_over(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    score_run = module.score_run

    def some(run: Run, **how: object) -> dict[str, float]:
        if run.path.name in failing:
            raise ValueError("features are not finite")
        return score_run(run, **how)  # type: ignore[arg-type]

    monkeypatch.setattr(module, "score_run", some)
    failing = {"trial-0", "trial-1"}
    found = tuned(tmp_path)
    assert found.chosen == 2
    assert found.trials[0].error == "ValueError: features are not finite"
    failing |= {"trial-2"}
    with pytest.raises(ConfigError, match="all trials failed, the last one by ValueError: features are not finite"):
        tuned(tmp_path, out=tmp_path / "other")


def test_strength() -> None:
    recipe = ViewRecipe(crops=(Crop(count=2, size=32, scale=(0.4, 1.0)),), brightness=0.8, hue=0.3, contrast=0.0)
    assert stronger(recipe, 1) == {}
    found = stronger(recipe, 2.0)
    assert found["augment.crops.0.scale"] == [0.05, 1.0]  # 1 - 0.6 x 2 is below what is possible
    assert (found["augment.brightness"], found["augment.hue"]) == (1.0, 0.5)
    assert "augment.contrast" not in found
    assert stronger(recipe, 0.5)["augment.crops.0.scale"] == [0.7, 1.0]
    strengths = [module._strength(trial) for trial in range(8)]
    assert strengths[0] == 1
    assert len(set(strengths)) == 8
    assert all(0.3 <= one <= 2 for one in strengths)


def test_wrong_input(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="tuning compares 2 trials or more, got '8'"):
        tune("digits-m", trials="8")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="tuning compares 2 trials or more, got 1"):
        tuned(tmp_path, trials=1)
    with pytest.raises(ConfigError, match=r"a budget of 0\.001 s is too small for 3 trials"):
        tuned(tmp_path, budget="0.001s")
    with pytest.raises(ConfigError, match="a budget is a time or a number"):
        tuned(tmp_path, budget="soon")


def experiment(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The script `experiments/tune.py`."""
    path = Path(__file__).parents[2] / "experiments" / "tune.py"
    monkeypatch.setattr(sys, "path", [str(path.parent), *sys.path])
    spec = importlib.util.spec_from_file_location("tune_experiment", path)
    assert spec is not None
    assert spec.loader is not None
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    return script


def test_share_of_the_labelled_optimum(monkeypatch: pytest.MonkeyPatch) -> None:
    def trials(**figures: list[float]) -> list[dict[str, object]]:
        rows = [dict(zip(figures, row, strict=True)) for row in zip(*figures.values(), strict=True)]
        return [{"knn20": row["knn20"], "figures": dict.fromkeys(CORRELATION, row["knn20"]) | row} for row in rows]

    first = trials(knn20=[0.5, 0.6, 0.4], neighbour_agreement=[0.1, 0.3, 0.0], uniformity=[-1.0, -2.0, -3.0])
    second = trials(knn20=[0.5, 0.4, 0.6], neighbour_agreement=[0.1, 0.3, 0.2], uniformity=[-1.0, -2.0, -3.0])
    module = experiment(monkeypatch)
    found = module.summary([first, second])
    assert (found["recipe"], found["best"]) == (0.5, 0.6)
    assert found["random"]["share"] == pytest.approx(0)
    assert found["figures"]["neighbour_agreement"]["share"] == pytest.approx((0.1 - 0.1) / 0.2)
    assert found["figures"]["neighbour_agreement"]["correlation"] == pytest.approx((1 - 0.5) / 2)
    assert found["figures"]["uniformity"]["knn20"] == pytest.approx(0.5)  # lower is better: the third trial of both
    assert module.summary([first])["figures"]["uniformity"]["share"] == pytest.approx(-1)
    assert module.summary([first[:1] + first[2:]])["random"]["share"] is None  # no trial is better than the recipe


def test_what_is_said_of_the_share_is_the_committed_result(monkeypatch: pytest.MonkeyPatch) -> None:
    path = Path(__file__).parents[2] / "benchmarks" / "results" / "tune.json"
    report = json.loads(path.read_text(encoding="utf-8"))
    module = experiment(monkeypatch)
    for count in (8, 12):
        figures = report["result"][f"{count} trials"]["all"]["figures"]
        found = module.result(report["searches"], count)["all"]["figures"]
        assert found[FIGURE] == pytest.approx(figures[FIGURE])
        assert round(figures[FIGURE]["share"], 2) == 0.07
        assert max(figures, key=lambda name: figures[name]["share"]) == FIGURE
    assert len(report["searches"]) == 4
    said = " ".join((command.__doc__ or "").split())
    assert "7 % of the possible gain in four searches" in said
    for name in ("cifar10", "digits-m"):
        of_set = report["result"]["8 trials"][name]
        for accuracy in (of_set["figures"][FIGURE]["knn20"], of_set["best"]):
            assert f"{100 * (accuracy - of_set['recipe']):+.1f}" in said, name


def test_the_tuned_recipe_names_the_tuned_images(tmp_path: Path) -> None:
    photos = tiny.write_folder(tmp_path / "photos", 22)
    how: dict[str, Any] = {"recipe": tiny.recipe(tmp_path), "budget": "2steps", "trials": 2, "out": tmp_path / "out"}
    found = tune(photos, **how, progress=False)
    assert load(found.recipe).data == str(photos)
    assert ssole.pretrain(recipe=found.recipe, steps=1, out=tmp_path / "run", progress=False).finished


def test_trials_of_two_versions_are_not_compared_silently(tmp_path: Path) -> None:
    tuned(tmp_path, budget="2steps", trials=2)
    record = tmp_path / "out" / "trial-0" / "environment.json"
    record.write_text(json.dumps(json.loads(record.read_text()) | {"ssole": "0.0.1"}))
    shutil.rmtree(tmp_path / "out" / "trial-1")
    with pytest.raises(ConfigError, match=r"was begun with ssole 0\.0\.1, and this is .*allow-changes version"):
        tuned(tmp_path, budget="2steps", trials=2)
    assert len(tuned(tmp_path, budget="2steps", trials=2, allow_changes=["version"]).trials) == 2
