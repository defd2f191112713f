"""Runner of a comparison: equal runs for all arms, an equal search, changes since it began, and failures."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from comparing import METHODS, Broken, Diverging, compare, stopped_in_its_second_arm

import ssole
from ssole.comparison import runner
from ssole.comparison.compare import resume_comparison
from ssole.config import ConfigError
from ssole.errors import DataError
from ssole.training import trial
from ssole.training.run import Run

pytestmark = pytest.mark.usefixtures("in_a_folder")


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


def test_the_search_is_equal_and_never_sees_test_images(monkeypatch: pytest.MonkeyPatch) -> None:
    scored: list[tuple[str, str]] = []
    evaluate = runner.evaluate

    def watched(run: Run, data: Any, *, test: Any, **given: Any) -> Any:
        scored.append((run.path.name, test.name))
        train = {data.id(i) for i in range(len(data))}
        assert not train & {test.id(i) for i in range(len(test))}
        return evaluate(run, data, test=test, **given)

    monkeypatch.setattr(runner, "evaluate", watched)
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


def test_a_method_that_fails_is_a_row_with_its_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "MAX_TRIAL_STEPS", 20)  # in which the second one fails
    result = compare({"ssole": {"loss.name": "ssole"}, "broken": Broken(), "diverging": Diverging()})
    assert result.arms["broken"].reason == "RuntimeError: no such thing"
    assert result.arms["broken"].runs == []
    assert result.best == "ssole"
    saved = json.loads(Path("out/comparison.json").read_text())
    assert saved["arms"]["broken"]["error"] == "RuntimeError: no such thing"
    assert saved["arms"]["broken"]["difference_to_best"] is None


@pytest.mark.slow
def test_a_search_whose_trials_all_fail_ends_the_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    class Late(Diverging):
        """Infinite only in long runs, not while its step is measured."""

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            return z.float().square().mean() / (len(z) * self.steps < 4 * 13).float()

    monkeypatch.setattr(trial, "MAX_TRIAL_STEPS", 5)  # which do not fail yet
    result = compare({"ssole": {"loss.name": "ssole"}, "late": Late()}, budget="60steps", seeds=1, search=2)
    reason = result.arms["late"].reason
    assert reason is not None
    assert reason.startswith("all trials in round 1 of its search failed, the last one by NonFiniteLossError: step")
