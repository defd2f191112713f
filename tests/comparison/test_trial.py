"""Trials: what is recorded of a run, going on, failures, and damaged records."""

from __future__ import annotations

import re
import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from comparing import compare
from torch import nn

import tiny
from ssole.comparison.compare import resume_comparison
from ssole.comparison.trial import BROKEN_GPU, FAILURES, Trial, describe_failure, read_trial, resumable, run_trial
from ssole.config import ConfigError
from ssole.errors import DataError, DiskError
from ssole.training.run import Run, writing
from ssole.training.stopping import Interrupted


@pytest.mark.usefixtures("in_a_folder")
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


@pytest.mark.usefixtures("in_a_folder")
@pytest.mark.parametrize(
    ("name", "hint"),
    [("plan.json", "start the comparison anew"), ("ssole/seed-0/trial.json", "remove out/ssole/seed-0 to train")],
)
def test_a_damaged_record_says_so(name: str, hint: str) -> None:
    compare(seeds=1, budget="1steps")
    Path("out", name).write_text('{"simclr": {}}')
    with pytest.raises(ConfigError, match=rf"{name} is damaged .*: {hint}"):
        resume_comparison("out")


# The functions themselves


def train(folder: Path, data: Any = None, *, measure: Any = None, **given: Any) -> Trial:
    torch.set_num_threads(1)
    how: dict[str, Any] = {"settings": {"optim.lr": 0.1}, "progress": False, **given}
    scores = measure or (lambda run: {"steps": float(run.metrics[-1]["step"])})
    return run_trial(folder, tiny.config(steps=3), tiny.images() if data is None else data, scores, **how)


def test_a_trial_is_recorded_as_it_is_returned_and_then_only_read(tmp_path: Path) -> None:
    checked: list[bool] = []
    folder = tmp_path / "new" / "trial"
    found = train(folder, check=lambda: checked.append(folder.exists()))
    assert checked == [False]  # before training
    assert (found.steps, found.seed, found.settings) == (3, 0, {"optim.lr": 0.1})
    assert (found.scores, found.error) == ({"steps": 3.0}, None)
    seconds = found.seconds
    assert seconds is not None
    assert seconds == max(row["seconds"] for row in Run(folder).metrics)
    assert found.images_per_second == pytest.approx(3 * 4 / seconds, abs=0.06)
    assert read_trial(folder) == found

    def refuse() -> None:
        raise AssertionError("a finished trial is not trained")

    again = train(folder, check=refuse, measure=lambda _: refuse(), evaluators=refuse)
    assert again == found


def test_a_curve_has_a_point_for_each_evaluation_with_the_last_rank(tmp_path: Path) -> None:
    values = iter((0.25, 0.5, 0.75))
    found = train(tmp_path / "trial", evaluators=lambda: {1: lambda backbone: {"knn20": next(values)}})
    assert [(point["images"], point["knn20"]) for point in found.curve] == [(4, 0.25), (8, 0.5), (12, 0.75)]
    ranks = {row["step"]: row["effective_rank"] for row in Run(tmp_path / "trial").metrics if "effective_rank" in row}
    assert [point["effective_rank"] for point in found.curve[1:]] == [ranks[2], ranks[3]]
    assert [point["seconds"] for point in found.curve] == sorted(point["seconds"] for point in found.curve)


@pytest.mark.parametrize(
    "error", [ValueError("no kNN\nof one image"), MemoryError("no kNN"), FloatingPointError("no kNN")]
)
def test_a_failure_is_recorded_with_its_first_line(tmp_path: Path, error: Exception) -> None:
    def fail(run: Run) -> dict[str, float]:
        raise error

    found = train(tmp_path / "trial", measure=fail)
    text = str(error).partition("\n")[0]
    assert found.error == f"{type(error).__name__}: {text}"
    assert (found.scores, found.seconds) == ({}, None)
    assert train(tmp_path / "trial") == found  # it is not tried again


@pytest.mark.parametrize("error", [OSError("the disk is full"), KeyboardInterrupt(), AssertionError("a bug")])
def test_what_is_no_failure_of_a_method_is_not_recorded(tmp_path: Path, error: BaseException) -> None:
    def fail(run: Run) -> dict[str, float]:
        raise error

    with pytest.raises(type(error)):
        train(tmp_path / "trial", measure=fail)
    assert read_trial(tmp_path / "trial") is None
    assert train(tmp_path / "trial").scores == {"steps": 3.0}  # the run is finished, and only measured


def test_images_that_cannot_be_used_are_no_failure_of_the_method(tmp_path: Path) -> None:
    """Be they others than a trial has begun on, or too few to begin with."""

    def stop(run: Run) -> dict[str, float]:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "trial", measure=stop)
    Run(tmp_path / "trial").backbone_path.unlink()
    with pytest.raises(DataError):
        train(tmp_path / "trial", tiny.images(30))
    assert read_trial(tmp_path / "trial") is None
    with pytest.raises(DataError, match="a batch of 4 images was asked for and the data hold 2"):
        train(tmp_path / "other", np.zeros((2, 12, 12, 3), np.uint8))
    assert read_trial(tmp_path / "other") is None


def test_what_a_killed_process_left_before_it_began_is_removed(tmp_path: Path) -> None:
    (tmp_path / "trial").mkdir()
    (tmp_path / "trial" / "rest").write_text("half of something")
    assert train(tmp_path / "trial").error is None
    assert not (tmp_path / "trial" / "rest").exists()


def test_each_trial_trains_a_copy_of_the_loss(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(()))

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return self.scale * z.float().square().mean()

    loss = Scaled()
    config = tiny.config(steps=2, loss={"name": "custom", "module": "Scaled"})
    how: dict[str, Any] = {"settings": {}, "loss": loss, "progress": False}
    found = run_trial(tmp_path / "trial", config, tiny.images(), lambda run: {}, **how)
    assert found.error is None
    assert loss.scale == 1


def test_failures_in_one_line() -> None:
    assert describe_failure(RuntimeError("  no such thing\nas this ")) == "RuntimeError: no such thing"
    assert describe_failure(MemoryError()) == "MemoryError: "
    assert all(issubclass(one, FAILURES) for one in (ConfigError, DataError, ZeroDivisionError, NotImplementedError))
    assert not issubclass(OSError, FAILURES)


@pytest.mark.parametrize("text", ["{}", '{"steps": 1, "seed": 0, "settings": {}, "more": 1}'])
def test_a_record_that_is_not_of_a_trial_names_its_file(tmp_path: Path, text: str) -> None:
    assert read_trial(tmp_path) is None
    (tmp_path / "trial.json").write_text(text)
    hint = re.escape(f"remove {tmp_path} to train that run anew")
    with pytest.raises(ConfigError, match=rf"trial\.json is damaged \(.*\): {hint}$"):
        read_trial(tmp_path)


@pytest.mark.parametrize(
    ("stop", "number"), [(KeyboardInterrupt(), signal.SIGINT), (Interrupted("end", signal.SIGTERM), signal.SIGTERM)]
)
def test_a_signal_names_the_command_and_keeps_its_number(tmp_path: Path, stop: BaseException, number: int) -> None:
    folder = tmp_path / "a" / "b"

    def stopped() -> None:
        with resumable(folder, "ssole go on"):
            assert folder.is_dir()
            with pytest.raises(ConfigError, match="another process"), resumable(folder, "another"):
                pytest.fail("one process at a time")
            raise stop

    for _ in range(2):  # the lock is free again
        with pytest.raises(Interrupted, match=r"^stopped; go on with: ssole go on$") as raised:
            stopped()
        assert raised.value.signal_number == number


def test_a_full_disk_names_the_command(tmp_path: Path) -> None:
    def fail() -> None:
        with resumable(tmp_path, "ssole go on"), writing(Run(tmp_path / "trial"), "config.yaml"):
            raise OSError(28, "No space left on device")

    words = f"config.yaml could not be written to {tmp_path / 'trial'} (No space left on device). Once this is fixed, "
    with pytest.raises(OSError, match=rf"^{re.escape(words)}go on with: ssole go on$"):
        fail()


def test_a_folder_that_cannot_be_made_says_so(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(ConfigError, match="folder"), resumable(tmp_path / "file", "ssole go on"):
        pytest.fail("there is no folder")


@pytest.mark.parametrize(
    "error",
    [
        DiskError("the disk is full"),
        DataError("photos/a.png cannot be read"),
        *(broken("CUDA error: an illegal memory access was encountered") for broken in BROKEN_GPU),
    ],
)
def test_what_is_no_fault_of_the_method_is_not_recorded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def start(*_: Any, **__: Any) -> None:
        raise error

    how: dict[str, Any] = {"measure": lambda run: {"knn20": 0.5}, "settings": {}, "progress": False}
    with monkeypatch.context() as patch:
        patch.setattr("ssole.comparison.trial.api.start", start)
        with pytest.raises(type(error), match=str(error)):
            run_trial(tmp_path / "trial", tiny.config(), tiny.images(), **how)
    assert read_trial(tmp_path / "trial") is None
    assert run_trial(tmp_path / "trial", tiny.config(), tiny.images(), **how).error is None


def test_a_full_disk_is_no_fault_of_the_method(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
    with pytest.raises(DiskError, match="the disk has 0 B free: make room"):
        run_trial(tmp_path / "trial", tiny.config(), tiny.images(), lambda run: {}, settings={}, progress=False)
    assert read_trial(tmp_path / "trial") is None
