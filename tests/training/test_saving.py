"""Saver: what is written depends on the clock, and what a run goes back or on to does not."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch

import tiny
from ssole.training import saving, stopping
from ssole.training.checkpoint import Progress, checkpoint_steps, load_checkpoint
from ssole.training.run import Run, create_run
from ssole.training.saving import Saver
from ssole.training.step import Learner
from ssole.training.stopping import Interrupted

LONG = 1e6


class Always:
    """A pace at which every fifth step is regular."""

    def is_regular(self, step: int) -> bool:
        return step % 5 == 0


def a_saver(folder: Path, **changes: Any) -> tuple[Saver, Learner, Run]:
    run = create_run(folder / "run", tiny.config(**{"checkpoint_seconds": LONG, **changes}))
    learner = Learner(run.config, torch.device("cpu"))
    return Saver(run, learner, Always(), lambda: None), learner, run  # type: ignore[arg-type]


def set_weights(learner: Learner, value: float) -> None:
    with torch.no_grad():
        next(learner.encoder.parameters()).fill_(value)


def weights_at(run: Run) -> tuple[int, float]:
    """Step of the newest checkpoint, and the weights that it has."""
    learner = Learner(run.config, torch.device("cpu"))
    done = load_checkpoint(run, learner.modules, learner.optimizer)
    return done.step, float(next(learner.encoder.parameters()).flatten()[0].detach())


def progress(step: int) -> Progress:
    return Progress(step, 22, 0.0)


def save(saver: Saver, learner: Learner, step: int, *, must: bool = False) -> None:
    set_weights(learner, step)
    saver.save(progress(step), must=must)


def test_within_the_time_states_are_kept_and_a_stop_writes_the_newest_regular_one_too(tmp_path: Path) -> None:
    saver, learner, run = a_saver(tmp_path)
    with saver:
        save(saver, learner, 5)  # the first is always written
        save(saver, learner, 10)
        save(saver, learner, 15)
        assert checkpoint_steps(run) == [5]
        save(saver, learner, 17, must=True)
    assert checkpoint_steps(run) == [15, 17]
    assert weights_at(run) == (17, 17.0)


def test_settings_that_are_edited_meanwhile_are_not_read(tmp_path: Path) -> None:
    saver, learner, run = a_saver(tmp_path)
    (run.path / "config.yaml").write_text("checkpoint_seconds: [")
    save(saver, learner, 5)
    assert checkpoint_steps(run) == [5]


def test_a_failure_writes_the_state_that_was_kept(tmp_path: Path) -> None:
    saver, learner, run = a_saver(tmp_path)
    save(saver, learner, 5)
    save(saver, learner, 10)
    set_weights(learner, 99.0)
    saver.write_kept()
    assert weights_at(run) == (10, 10.0)
    saver.write_kept()
    assert checkpoint_steps(run) == [5, 10]


def test_after_the_time_and_when_asked_for_a_state_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = 100.0
    monkeypatch.setattr(saving.time, "monotonic", lambda: clock)
    saver, learner, run = a_saver(tmp_path, checkpoint_seconds=60.0)
    written = []
    for step, clock in ((5, 100.0), (10, 159.0), (15, 160.0), (20, 219.0)):  # noqa: B007 - read by the lambda
        save(saver, learner, step)
        written.append(checkpoint_steps(run)[-1])
    assert written == [5, 5, 15, 15]
    save(saver, learner, 25, must=True)
    assert checkpoint_steps(run) == [15, 25]


def test_a_thread_writes_the_state_of_when_it_was_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    begin, write = threading.Event(), saving.write_checkpoint

    def slow(*arguments: Any, **named: Any) -> None:
        assert begin.wait(60)
        write(*arguments, **named)

    monkeypatch.setattr(saving, "write_checkpoint", slow)
    saver, learner, run = a_saver(tmp_path)
    saver._pool = saving.ThreadPoolExecutor(1)  # as on an accelerator
    with saver:
        save(saver, learner, 5)
        set_weights(learner, 99.0)  # training goes on
        assert checkpoint_steps(run) == []
        begin.set()
    assert weights_at(run) == (5, 5.0)


def test_what_the_thread_fails_at_is_raised_by_the_next_call(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    saver, learner, _ = a_saver(tmp_path, checkpoint_seconds=0.0)
    saver._pool = saving.ThreadPoolExecutor(1)
    monkeypatch.setattr(saving, "write_checkpoint", full)
    save(saver, learner, 5)
    with pytest.raises(OSError, match="No space left"):
        save(saver, learner, 10)
    with pytest.raises(OSError, match="No space left"), saver:
        save(saver, learner, 15)


@pytest.mark.parametrize("fails", [8, 12])
def test_a_run_that_fails_goes_back_to_the_same_state(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, fails: int
) -> None:
    terms = Learner.loss_terms

    def failing(self: Learner, *arguments: Any) -> dict[str, torch.Tensor]:
        found = terms(self, *arguments)
        bad = self.steps_done + 1 == fails and self.optimizer.param_groups[0]["lr"] > 0.06
        return {name: value * (float("nan") if bad else 1.0) for name, value in found.items()}

    monkeypatch.setattr(Learner, "loss_terms", failing)
    runs = [
        tiny.start(tmp_path / f"after{seconds}", checkpoint_seconds=seconds, optim__lr=0.1, optim__final_lr=0.1)
        for seconds in (0.0, LONG)
    ]
    often, seldom = (run.backbone_path.read_bytes() for run in runs)
    assert often == seldom
    assert [row["step"] for row in runs[1].metrics if "guardian" in row] == [5 if fails == 8 else 10]


def test_a_run_that_is_killed_with_states_in_memory_goes_on_from_the_disk(tmp_path: Path) -> None:
    whole = tiny.start(tmp_path / "whole", checkpoint_seconds=LONG)
    with pytest.raises(tiny.Crash):
        tiny.start(tmp_path / "run", checkpoint_seconds=LONG, evaluators={11: tiny.crash})
    assert checkpoint_steps(Run(tmp_path / "run")) == [0, 5]
    run = tiny.resume(tmp_path / "run")
    assert run.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert [(row["step"], row["loss"]) for row in run.metrics] == [(row["step"], row["loss"]) for row in whole.metrics]


def use_threads(monkeypatch: pytest.MonkeyPatch) -> None:
    """Savers that write in a thread, as on an accelerator."""
    make = Saver.__init__

    def threaded(self: Saver, *arguments: Any) -> None:
        make(self, *arguments)
        self._pool = saving.ThreadPoolExecutor(1)

    monkeypatch.setattr(Saver, "__init__", threaded)


def test_a_second_signal_does_not_cut_the_last_write_short(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A scheduler sends two, the second one while the thread still writes."""
    waiting, write, leave = threading.Event(), saving.write_checkpoint, Saver.__exit__

    def exit_(self: Saver, *error: object) -> None:
        waiting.set()
        leave(self, *error)

    def slow(run: Run, tensors: Any, done: Progress, **named: Any) -> None:
        if done.step == 8:
            assert waiting.wait(60)
            os.kill(os.getpid(), signal.SIGINT)
            time.sleep(0.1)  # in which the signal arrives
        write(run, tensors, done, **named)

    use_threads(monkeypatch)
    monkeypatch.setattr(Saver, "__exit__", exit_)
    monkeypatch.setattr(saving, "write_checkpoint", slow)
    monkeypatch.setattr(stopping, "_AT_ONCE", 600.0)  # on a machine however busy, the second is part of the request
    noted: list[int] = []
    before = signal.signal(signal.SIGINT, lambda number, _: noted.append(number))
    try:
        with pytest.raises(Interrupted, match="stopped after step 8"):
            tiny.start(tmp_path / "run", evaluators={8: lambda _: signal.raise_signal(signal.SIGTERM)})
    finally:
        signal.signal(signal.SIGINT, before)
    assert noted == []
    assert checkpoint_steps(Run(tmp_path / "run")) == [5, 8]


def test_a_run_whose_first_write_fails_goes_on_from_its_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """On an accelerator the run hears of it at the next write, when the metrics are well ahead."""

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    whole = tiny.start(tmp_path / "whole")
    with monkeypatch.context() as patch:
        use_threads(patch)
        patch.setattr(saving, "write_checkpoint", full)
        with pytest.raises(OSError, match="No space left"):
            tiny.start(tmp_path / "run")
    run = Run(tmp_path / "run")
    assert run.metrics[-1]["step"] == 10
    assert tiny.resume(run).backbone_path.read_bytes() == whole.backbone_path.read_bytes()


@pytest.mark.parametrize("threads", [False, True])
def test_whole_runs_end_with_their_last_state_on_the_disk(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, threads: bool
) -> None:
    if threads:
        use_threads(monkeypatch)
    run = tiny.start(tmp_path / "run", checkpoint_seconds=LONG)
    assert checkpoint_steps(run) == [5, tiny.STEPS]
    assert run.finished


def fail(saver: Saver, learner: Learner, step: int) -> None:
    """States after a step and five more, and then an error, as of an evaluator."""
    with saver:
        save(saver, learner, step)
        save(saver, learner, step + 5)
        raise ValueError("an evaluator's")


def test_an_error_of_any_kind_writes_the_state_that_was_kept(tmp_path: Path) -> None:
    saver, learner, run = a_saver(tmp_path)
    with pytest.raises(ValueError, match="an evaluator's"):
        fail(saver, learner, 5)
    assert weights_at(run) == (10, 10.0)


def test_an_error_is_raised_also_if_the_state_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full_disk(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    saver, learner, run = a_saver(tmp_path)
    monkeypatch.setattr(saver, "_write_kept", full_disk)
    with (
        pytest.raises(ValueError, match="an evaluator's"),
        pytest.warns(UserWarning, match="could not be written: .* No space left"),
    ):
        fail(saver, learner, 5)
    assert checkpoint_steps(run) == [5]
