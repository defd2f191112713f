"""`ssole.compare`: what it trains, what comes out, how it goes on after being stopped, and what it refuses."""

from __future__ import annotations

import json
import os
import shutil
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import ssole
import tiny
from ssole.comparison import runner
from ssole.comparison.compare import resume_comparison
from ssole.comparison.trial import Trial, read_trial
from ssole.config import ConfigError, ViewRecipe, load
from ssole.data.arrays import ArraySource
from ssole.errors import DataError
from ssole.losses import SimCLRLoss
from ssole.training import trial
from ssole.training.run import Run
from ssole.training.stopping import Interrupted

METHODS = ["ssole", "simclr"]


@pytest.fixture(autouse=True)
def in_a_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(trial, "MAX_TRIAL_STEPS", 3)  # by which the time of a step is measured
    monkeypatch.setattr(runner, "draw", lambda result: None)  # plots take as long as all training; tests/cli has some
    tiny.recipe(tmp_path)
    tiny.write_folder(tmp_path / "photos" / "train", 80)
    tiny.write_folder(tmp_path / "photos" / "test", 40)


def compare(methods: Any = METHODS, data: Any = "photos", **given: Any) -> ssole.Comparison:
    torch.set_num_threads(1)
    options = {"recipe": "tiny.yaml", "budget": "6steps", "seeds": 2, "search": 0, "out": "out", "progress": False}
    return ssole.compare(methods, data, **{**options, **given})


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


def test_runs_are_those_of_pretrain() -> None:
    compare()
    alone = ssole.pretrain("photos", recipe="tiny.yaml", out="alone", steps=6, seed=1, progress=False)
    assert alone.backbone_path.read_bytes() == Path("out/ssole/seed-1/backbone.safetensors").read_bytes()


@pytest.mark.slow
def test_without_a_recipe_the_settings_suit_the_images() -> None:
    resized = {"crops": [{"count": 2, "size": 8}]}
    result = compare(recipe=None, budget="1steps", seeds=1, out=None, batch_size=4, augment=resized)
    assert result.path.name == "compare-small-images"
    config = Run(result.path / "ssole/seed-0").config
    assert config.reasons == ()
    assert config.optim == load("small-images").optim


def test_mean_and_std_that_a_recipe_leaves_open_are_measured() -> None:
    tiny.recipe(Path(), augment={"crops": [{"count": 2, "size": 8}], "mean": None, "std": None})
    compare(seeds=1, budget="2steps")
    found = Run(Path("out/ssole/seed-0")).config.augment
    assert found.mean is not None
    assert found.mean != ViewRecipe().mean


@pytest.mark.slow
def test_a_sample_of_the_images_will_do(monkeypatch: pytest.MonkeyPatch) -> None:
    result = compare(images=30, budget="18steps", seeds=1, search=2)
    assert result.data["train"] == "train (sample), 30 images"
    assert result.data["test"].endswith("40 images")
    ids = json.loads(Path("out/ssole/seed-0/images.json").read_text())
    whole = compare(out="whole", seeds=1)
    assert ids != json.loads((whole.path / "ssole/seed-0/images.json").read_text())
    monkeypatch.setattr(runner, "run_trial", lambda folder, *_, **__: read_trial(folder))
    again = resume_comparison("out", progress=False)  # the folder knows the number
    assert again.arms["ssole"].runs == result.arms["ssole"].runs
    with pytest.raises(ConfigError, match="images: 30 before, 31 now"):
        compare(images=31, budget="18steps", seeds=1, search=2)


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
def test_it_goes_on_after_being_stopped_anywhere(monkeypatch: pytest.MonkeyPatch) -> None:
    whole = compare(out="whole", search=2)
    started: list[str] = []
    train = runner.run_trial

    def stopping(folder: Path, *arguments: Any, **given: Any) -> Trial:
        started.append(folder.name)
        if len(started) in (2, 6):
            raise KeyboardInterrupt
        return train(folder, *arguments, **given)

    monkeypatch.setattr(runner, "run_trial", stopping)
    for _ in range(2):
        with pytest.raises(Interrupted, match="go on with: ssole compare --resume out"):
            compare(search=2)
    monkeypatch.setattr(runner, "run_trial", train)
    again = resume_comparison("out", progress=False)
    for name in METHODS:
        assert again.arms[name].chosen == whole.arms[name].chosen
        assert [run.scores for run in again.arms[name].runs] == [run.scores for run in whole.arms[name].runs]
    made = {path: path.stat().st_mtime_ns for path in Path("out").rglob("trial.json")}
    resume_comparison("out", progress=False)  # a finished one is only read
    assert made == {path: path.stat().st_mtime_ns for path in Path("out").rglob("trial.json")}


@pytest.mark.slow
def test_a_trial_stopped_halfway_goes_on_from_its_checkpoint() -> None:
    whole = compare(out="whole", checkpoint_every=2)

    class Stop(nn.Module):
        """SSOLE, until Ctrl-C arrives at its fourth step."""

        steps = 0

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            self.steps += 1
            if self.steps == 5:
                raise KeyboardInterrupt
            return z.float().square().mean()

    stopped = Stop()
    arms = {"mine": stopped, "ssole": {"loss.name": "ssole"}}
    with pytest.raises(Interrupted):
        compare(arms, checkpoint_every=2)
    assert not Path("out/mine/seed-0/trial.json").exists()
    Stop.steps = -100
    result = compare(arms, checkpoint_every=2)
    assert result.arms["mine"].runs[0].error is None
    assert result.arms["ssole"].runs[0].scores == whole.arms["ssole"].runs[0].scores


def stopped_in_its_second_arm(monkeypatch: pytest.MonkeyPatch) -> None:
    """Comparison whose first arm has finished; Ctrl-C came in the third step of the second."""
    terms, calls = SimCLRLoss.terms, iter(range(99))

    def stopping(self: SimCLRLoss, z: torch.Tensor) -> Any:
        if next(calls) == 2:
            raise KeyboardInterrupt
        return terms(self, z)

    with monkeypatch.context() as patch:
        patch.setattr("ssole.comparison.plan.step_seconds", lambda *_, **__: 0.5)
        patch.setattr(SimCLRLoss, "terms", stopping)
        with pytest.raises(Interrupted):
            compare(seeds=1, checkpoint_every=1)


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


def test_a_url_is_opened_with_the_query_that_the_folder_does_not_keep(monkeypatch: pytest.MonkeyPatch) -> None:
    opened: list[Any] = []

    def watched(data: Any, test: Any, **_: Any) -> Any:
        opened.extend([data, test])
        raise DataError("stop here")

    monkeypatch.setattr("ssole.comparison.compare.open_images", watched)
    urls = ["https://host/train.parquet?signature=abc", "https://host/test.parquet?signature=def"]
    with pytest.raises(DataError, match="stop here"):
        compare(data=urls[0], test=urls[1])
    assert opened == urls


class Broken(nn.Module):
    """A loss that fails."""

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        raise RuntimeError("no such thing\nas this")


class Diverging(nn.Module):
    """A loss that becomes infinite at the second step."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, z: torch.Tensor) -> torch.Tensor:
        self.steps += 1
        return z.float().square().mean() / (self.steps < 12).float()


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


def test_without_a_test_split_a_fifth_is_held_out_of_training() -> None:
    tiny.write_folder(Path("one"), 100)
    result = compare(data="one", seeds=1)
    assert result.data["test"].endswith("20 images")
    assert result.data["train"].endswith("80 images")
    assert any("20 images held out" in note for note in result.notes)


def test_times_become_steps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    from ssole.comparison import plan

    monkeypatch.setattr(plan, "step_seconds", lambda config, *_, **__: 0.5 if config.loss.name == "ssole" else 0.25)
    result = compare(budget="2s", seeds=1)
    assert {name: arm.steps for name, arm in result.arms.items()} == {"ssole": 4, "simclr": 8}
    Path("timed.yaml").write_text(Path("tiny.yaml").read_text() + "budget: 2s\n")
    timed = compare(recipe="timed.yaml", budget=None, out="timed", seeds=1)  # the recipe's own budget
    assert {name: arm.steps for name, arm in timed.arms.items()} == {"ssole": 4, "simclr": 8}
    monkeypatch.setattr(plan, "step_seconds", lambda *_, **__: 9.0)
    assert resume_comparison("out", progress=False).arms["ssole"].steps == 4


def test_it_says_what_it_will_cost_before_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    compare(progress=True, search=2, seeds=1)
    said = capsys.readouterr().err
    cost = said.index("ssole: 4 steps of search, 1 run of 6 steps")
    assert cost < said.index("ssole, search-0-trial-0")
    assert "in all about" in said
    assert "less than one epoch" in said


def test_arrays_and_published_projectors() -> None:
    labels = np.arange(60) % 2
    data, test = (ArraySource(tiny.images(60), labels, name=name) for name in ("train", "test"))
    arms = {"ssole": {"model.projector_layers": 1, "model.projector_dim": 32}, "simclr": {"loss.name": "simclr"}}
    result = compare(arms, data, test=test, projector="published", batch_size=20, seeds=1, **{"loss.name": "ssole"})
    assert result.best is not None
    config = Run(Path("out/simclr/seed-0")).config
    assert config.projector == config.loss.projector
    assert Run(Path("out/ssole/seed-0")).config.projector.dim == 32
    with pytest.raises(ConfigError, match=r"images in memory: call ssole\.compare again"):
        resume_comparison("out")


@pytest.mark.parametrize(
    ("given", "error", "words"),
    [
        ({"methods": ["ssole", "simcrl"]}, ConfigError, "no loss 'simcrl'. Did you mean 'simclr'?"),
        ({"methods": ["ssole"]}, ConfigError, "two different methods or more, got ssole"),
        ({"methods": ["ssole", "ssole"]}, ConfigError, "two different methods or more, got ssole, ssole"),
        ({"methods": {"a/b": {}, "c": {}}}, ConfigError, "the name of an arm is a folder's too: .* got 'a/b'"),
        ({"methods": {"..": {}, "c": {}}}, ConfigError, r"got '\.\.'"),
        ({"budget": "soon"}, ConfigError, "a budget is a time or a number, .* got 'soon'"),
        ({"budget": "0steps"}, ConfigError, "got '0steps'"),
        ({"seeds": 0}, ConfigError, "at least 1 seed, got 0"),
        ({"images": 1}, ConfigError, "at least 2 training images, got 1"),
        ({"search": 1}, ConfigError, "2 trials or more, or 0 for none, got 1"),
        ({"data": "photos/nowhere"}, DataError, "nowhere"),
        ({"data": tiny.images()}, DataError, "methods are scored by labels, and array has none"),
        ({"batchsize": 3}, ConfigError, "Did you mean 'batch_size'?"),
        ({"batch_size": 81}, DataError, "hold 80"),
        ({"model.backbone": "resnet_18"}, ConfigError, "no model 'resnet_18'"),
    ],
)
def test_refused(given: dict[str, Any], error: type[Exception], words: str) -> None:
    with pytest.raises(error, match=words):
        compare(**given)
    assert not list(Path().glob("out/*/*"))


def test_a_start_that_failed_is_not_in_the_way() -> None:
    with pytest.raises(DataError, match="a batch of 99 images was asked for"):
        compare(batch_size=99, seeds=1)
    assert compare(seeds=1, budget="1steps").best is not None


def test_the_length_of_a_recipe_in_epochs_is_that_of_the_images_trained_on() -> None:
    tiny.write_folder(Path("one"), 50)  # 10 of them are held out
    with pytest.raises(DataError, match="a batch of 41 images was asked for and the data hold 40"):
        compare(data="one", budget=None, batch_size=41, epochs=2, steps=None)
    result = compare(["ssole", "simclr"], data="one", budget=None, batch_size=8, epochs=1, steps=None, seeds=1)
    assert [arm.steps for arm in result.arms.values()] == [5, 5]


@pytest.mark.parametrize(
    ("name", "hint"),
    [("plan.json", "start the comparison anew"), ("ssole/seed-0/trial.json", "remove out/ssole/seed-0 to train")],
)
def test_a_damaged_record_says_so(name: str, hint: str) -> None:
    compare(seeds=1, budget="1steps")
    Path("out", name).write_text('{"simclr": {}}')
    with pytest.raises(ConfigError, match=rf"{name} is damaged .*: {hint}"):
        resume_comparison("out")


def test_another_comparison_in_the_folder_is_refused() -> None:
    compare(seeds=1)
    with pytest.raises(
        ConfigError, match=r"another comparison.*seeds: 1 before, 2 now; budget.amount: 6.0 before, 7.0"
    ):
        compare(seeds=2, budget="7steps")
    with pytest.raises(ConfigError, match=r"arms.simclr.config.optim.lr: 0.1 before, 0.2 now"):
        compare(seeds=1, **{"optim.lr": 0.2})
    with pytest.raises(ConfigError, match="photos is not empty"):
        compare(out="photos")
    with pytest.raises(ConfigError, match="photos is not the folder of a comparison"):
        resume_comparison("photos")


def test_two_processes_on_one_folder_are_refused() -> None:
    from filelock import FileLock

    compare(seeds=1)
    with FileLock("out/.lock"), pytest.raises(ConfigError, match="another process"):
        compare(seeds=1)
