"""Runner of a comparison: equal runs for all arms, an equal search, changes since it began, and failures."""

from __future__ import annotations

import json
import os
import shutil
import sys
import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from comparing import METHODS, Broken, Diverging, compare, request, stopped_in_its_second_arm

import ssole
import tiny
from ssole.comparison import runner
from ssole.comparison import trial as trial_module
from ssole.comparison.compare import resume_comparison
from ssole.comparison.images import open_images
from ssole.comparison.plan import ArmPlan
from ssole.comparison.result import Comparison
from ssole.comparison.runner import Runner
from ssole.comparison.trial import Trial
from ssole.config import ConfigError
from ssole.data.arrays import ArraySource
from ssole.errors import DataError
from ssole.training import dry_run
from ssole.training.run import Run


@pytest.mark.usefixtures("in_a_folder")
def test_every_run_has_the_same_images_budget_and_seeds() -> None:
    result = compare()
    assert list(result.arms) == METHODS
    for name, arm in result.arms.items():
        assert [run.seed for run in arm.runs] == [0, 1]
        for run in arm.runs:
            assert run.error is None
            assert {"knn20", "linear", "centred_effective_rank"} <= run.scores.keys()
            assert run.curve[-1]["images"] == 6 * 4
            assert run.curve[-1]["effective_rank"] >= 1
        config = Run(Path("out") / name / "seed-0").config
        assert (config.loss.name, config.steps, config.seed) == (name, 6, 0)
        assert (config.projector.dim, config.projector.hidden) == (8, 8)  # the recipe's, for both
    first = [json.loads((Path("out") / name / "seed-0" / "images.json").read_text()) for name in METHODS]
    assert first[0] == first[1]
    assert result.best in METHODS
    other = next(name for name in METHODS if name != result.best)
    difference = result.difference(other)
    assert difference is not None
    assert difference.n == 2
    assert result.difference(result.best) is None


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.slow
def test_the_search_is_equal_and_never_sees_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[tuple[str, str]] = []
    evaluate = trial_module.evaluate

    def watched(run: Run, data: Any, *, test: Any, **given: Any) -> Any:
        scored.append((run.path.name, test.name))
        train = {data.id(i) for i in range(len(data))}
        assert not train & {test.id(i) for i in range(len(test))}
        return evaluate(run, data, test=test, **given)

    monkeypatch.setattr(trial_module, "evaluate", watched)
    result = compare(budget="18steps", seeds=1, search=4)
    searched = [one for one in scored if one[0].startswith("search")]
    assert {test for _, test in searched} == {"train (validation)"}
    for arm in result.arms.values():
        assert [(one.trial, one.steps) for one in arm.search[:4]] == [(0, 2), (1, 2), (2, 2), (3, 2)]
        assert [one.steps for one in arm.search[4:]] == [6, 6]  # the better third, rounded up, goes on
        scores = {one.trial: one.score or 0.0 for one in arm.search[:4]}
        assert {one.trial for one in arm.search[4:]} == set(sorted(scores, key=lambda t: (-scores[t], t))[:2])
    tried = {name: [one.settings for one in arm.search[:4]] for name, arm in result.arms.items()}
    assert tried["ssole"][0] == tried["simclr"][0] == {}
    for ours, theirs in zip(tried["ssole"][1:], tried["simclr"][1:], strict=True):
        assert ours["optim.lr"] == theirs["optim.lr"]
        assert ours.keys() - theirs.keys() == {"loss.high_rank_weight"}
        assert theirs.keys() <= ours.keys()


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.slow
@pytest.mark.parametrize("part", ["train", "test"])
def test_it_goes_on_with_touched_images_only_if_told(part: str, monkeypatch: pytest.MonkeyPatch) -> None:
    stopped_in_its_second_arm(monkeypatch)
    for path in (Path("photos") / part).rglob("*.png"):
        os.utime(path, (0, 0))
    with pytest.raises(DataError, match=r"sizes or times of change.*--allow-changes images"):
        resume_comparison("out", progress=False)
    assert not list(Path("out/simclr").rglob("trial.json"))  # that is no failure of the method
    with pytest.warns(UserWarning, match="goes on with them"):
        again = resume_comparison("out", progress=False, allow_changes=["images"])
    assert again.arms["simclr"].runs[0].error is None
    os.utime(path, (1, 1))
    assert resume_comparison("out", progress=False).arms.keys() == again.arms.keys()  # a finished one is only read


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.slow
@pytest.mark.parametrize("between_trials", [True, False])
def test_another_version_ends_the_comparison_and_is_no_failure_of_a_method(
    monkeypatch: pytest.MonkeyPatch, between_trials: bool
) -> None:
    stopped_in_its_second_arm(monkeypatch)
    version = ssole.__version__
    if between_trials:
        shutil.rmtree("out/simclr")
    monkeypatch.setattr(ssole, "__version__", "9.9")
    monkeypatch.setattr(runner, "__version__", "9.9")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"this is 9\.9.*--allow-changes version"):
            resume_comparison("out", progress=False)
        assert not list(Path("out/simclr").rglob("trial.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # that of a run that goes on
        again = resume_comparison("out", progress=False, allow_changes=["version"])
    assert again.arms["simclr"].runs
    assert again.notes == [f"Runs of ssole {version} and 9.9 are compared."]


@pytest.mark.usefixtures("in_a_folder")
def test_a_method_that_fails_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dry_run, "MAX_TRIAL_STEPS", 20)  # in which the second one fails
    result = compare({"ssole": {"loss.name": "ssole"}, "broken": Broken(), "diverging": Diverging()})
    assert result.arms["broken"].reason == "RuntimeError: no such thing"
    assert result.arms["broken"].runs == []
    assert result.best == "ssole"
    saved = json.loads(Path("out/comparison.json").read_text())
    assert saved["arms"]["broken"]["error"] == "RuntimeError: no such thing"
    assert saved["arms"]["broken"]["difference_to_best"] is None


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.slow
def test_a_search_whose_trials_all_fail_ends_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Diverging):
        """Infinite only in long runs, not while its step is measured."""

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            return z.float().square().mean() / (len(z) * self.steps < 4 * 13).float()

    monkeypatch.setattr(dry_run, "MAX_TRIAL_STEPS", 5)  # which do not fail yet
    result = compare({"ssole": {"loss.name": "ssole"}, "late": Late()}, budget="60steps", seeds=1, search=2)
    reason = result.arms["late"].reason
    assert reason is not None
    assert reason.startswith("all trials in round 1 of its search failed, the last one by NonFiniteLossError: step")


# The order of trials, with runs that take no time


class Trials:
    """Trials that are not trained: their scores are given by arm and name, and those without one fail."""

    def __init__(self, scores: dict[str, float]) -> None:
        self.scores, self.calls = scores, list[tuple[str, int, int, str]]()
        self.settings: dict[str, Any] = {}

    def __call__(self, folder: Path, config: Any, data: Any, measure: Any, **given: Any) -> Trial:
        name = f"{folder.parent.name} {folder.name}"
        self.calls.append((name, config.steps, config.seed, data if isinstance(data, str) else data.name))
        self.settings[name] = given["settings"]
        one = Trial(steps=config.steps, seed=config.seed, settings=dict(given["settings"]))
        score = self.scores.get(name)
        if score is None:
            return replace(one, error="RuntimeError: no")
        return replace(one, scores={"knn20": score}, seconds=1.0, images_per_second=1.0)


def run(
    folder: Path, trials: Trials, monkeypatch: pytest.MonkeyPatch, *, plots: bool = False, **given: Any
) -> Comparison:
    monkeypatch.setattr(runner, "run_trial", trials)
    if not plots:
        monkeypatch.setattr(runner, "draw", lambda result: None)
    asked = request(**{"seeds": 2, "a": {}, "b": {}, **given})
    plan = {
        arm.name: ArmPlan(steps=90, step_seconds=1.0)
        if arm.name != "unable"
        else ArmPlan(steps=0, step_seconds=0.0, error="RuntimeError: never")
        for arm in asked.arms
    }
    labels = np.arange(40) % 2
    data, test = (ArraySource(tiny.images(40), labels, name=name) for name in ("mine", "other"))
    how: dict[str, Any] = {"data": "photos", "images": open_images(data, test), "progress": False}
    return Runner(request=asked, arms=asked.arms, plan=plan, folder=folder, **how).run()


def test_the_runs_of_a_seed_stand_beside_each_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials({f"{arm} seed-{seed}": 0.5 + 0.1 * seed for arm in "ab" for seed in (0, 1)})
    result = run(tmp_path, trials, monkeypatch, unable={})
    assert trials.calls == [
        ("a seed-0", 90, 0, "photos"),
        ("b seed-0", 90, 0, "photos"),
        ("a seed-1", 90, 1, "photos"),
        ("b seed-1", 90, 1, "photos"),
    ]
    assert [trial.scores["knn20"] for trial in result.arms["b"].runs] == [0.5, 0.6]
    assert (result.arms["unable"].runs, result.arms["unable"].error) == ([], "RuntimeError: never")
    assert result.data == {"train": "mine, 40 images", "test": "other, 40 images"}
    assert json.loads((tmp_path / "comparison.json").read_text())["arms"]["b"]["steps"] == 90


def test_the_next_best_trial_takes_the_place_of_one_that_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of 6 trials at 10 steps the best are 4, 1, 5, then 0 and 3 alike; 2 failed. At 30 steps, 1 fails as well."""
    first = {4: 0.9, 1: 0.8, 5: 0.7, 0: 0.6, 3: 0.6}
    scores = {f"a search-0-trial-{trial}": score for trial, score in first.items()}
    scores |= {"a search-1-trial-4": 0.5, "a search-1-trial-5": 0.55}
    trials = Trials(scores | {"a seed-0": 0.9, "b seed-0": 0.8, "b search-0-trial-0": 0.1})
    result = run(tmp_path, trials, monkeypatch, seeds=1, search=6)
    of_a = [call for call in trials.calls if call[0].startswith("a ")]
    searched = [(f"a search-0-trial-{trial}", 10, 1, "mine (for the search)") for trial in range(6)]
    assert of_a[:6] == searched  # with the seed after those of the result
    assert [name for name, *_ in of_a[6:]] == [
        "a search-1-trial-4", "a search-1-trial-1", "a search-1-trial-5", "a seed-0"
    ]  # fmt: skip
    assert {steps for name, steps, *_ in of_a[6:9]} == {30}
    assert result.arms["a"].chosen == trials.settings["a search-0-trial-5"] == trials.settings["a seed-0"] != {}
    tried = [(one.trial, one.steps, one.score) for one in result.arms["a"].search]
    assert tried[6:] == [(4, 30, 0.5), (1, 30, None), (5, 30, 0.55)]
    assert tried[2] == (2, 10, None)
    # Of b, trial 0 alone has a score, and fails in the second round.
    reason = "all trials in round 2 of its search failed, the last one by RuntimeError: no"
    assert (result.arms["b"].error, result.arms["b"].runs) == (reason, [])
    assert "b seed-0" not in [name for name, *_ in trials.calls]
    assert result.data["validation"] == "mine (validation), 4 images"


def test_a_failed_run_does_not_end_its_arm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials({"a seed-0": 0.5, "b seed-0": 0.4, "b seed-1": 0.4})
    result = run(tmp_path, trials, monkeypatch)
    assert [trial.error for trial in result.arms["a"].runs] == [None, "RuntimeError: no"]
    assert len(trials.calls) == 4


def test_without_matplotlib_a_note_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trials = Trials({f"{arm} seed-{seed}": 0.5 for arm in "ab" for seed in (0, 1)})
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    result = run(tmp_path, trials, monkeypatch, plots=True)
    note = "No plots: they need matplotlib, pip install 'ssole[plot]'."
    assert note in result.notes
    assert note in json.loads((tmp_path / "comparison.json").read_text())["notes"]


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        (None, []),
        ("{}", []),
        ('{"environment": []}', []),
        ('{"environment": {"ssole": "0.9"}}', ["0.9"]),
        ('{"environment": {"ssole": "0.9 and 1.0"}}', ["0.9", "1.0"]),
    ],
)
def test_versions_of_what_a_folder_holds(tmp_path: Path, text: str | None, versions: list[str]) -> None:
    if text is not None:
        (tmp_path / "comparison.json").write_text(text)
    assert runner._versions(tmp_path) == versions
