"""The guardian: what a run does about a failure, which each test injects, and that interruptions change nothing."""

from __future__ import annotations

import math
import re
import signal
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from disk import small_files
from ssole.config import LOSS_CONFIGS
from ssole.training import guardian
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.guardian import CollapseError
from ssole.training.replay import save_bundle
from ssole.training.run import Run, create_run
from ssole.training.step import Learner
from ssole.training.stopping import Interrupted
from ssole.training.watch import LossWatch, NonFiniteLossError
from tiny import Crash, crash

Where = Callable[[int, float], bool]
"""Whether the loss of a step, counted from 1, is NaN at a learning rate."""


def inject(monkeypatch: pytest.MonkeyPatch, fails: Where, *, gradient: bool = False) -> None:
    """Losses, or gradients alone, that are not finite where `fails` says so."""
    original = Learner.loss_terms

    def loss_terms(self: Learner, z_BVD: torch.Tensor, *labels: torch.Tensor) -> dict[str, torch.Tensor]:
        terms = original(self, z_BVD, *labels)
        if fails(self.steps_done + 1, self.optimizer.param_groups[0]["lr"]):
            if gradient:
                z_BVD.register_hook(lambda g: g * math.inf)
            else:
                terms["loss"] = terms["loss"] * math.nan
        return terms

    monkeypatch.setattr(Learner, "loss_terms", loss_terms)


def interventions(run: Run) -> list[dict[str, Any]]:
    return [row for row in run.metrics if "guardian" in row]


CONSTANT = {"optim__lr": 0.1, "optim__final_lr": 0.1}


@pytest.mark.parametrize("gradient", [False, True])
def test_a_failure_goes_back_to_the_last_checkpoint_and_on_at_half_the_rate(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gradient: bool
) -> None:
    inject(monkeypatch, lambda step, lr: step == 8 and lr > 0.06, gradient=gradient)
    run = tiny.start(tmp_path / "run", checkpoint_every=3, **CONSTANT)
    (row,) = interventions(run)
    what = "the norm of its gradient is nan" if gradient else "the loss is nan"
    assert (row["step"], row["failed"], row["rate"], row["reason"]) == (6, 8, 0.5, what)
    assert [(row["step"], row["lr"]) for row in run.metrics if "loss" in row] == [
        *((step, 0.1) for step in range(1, 7)),
        *((step, 0.05) for step in range(7, 13)),
    ]
    assert run.finished


def test_without_a_checkpoint_it_begins_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    half = tiny.start(tmp_path / "half", optim__lr=0.05, optim__final_lr=0.05)
    inject(monkeypatch, lambda step, lr: step in (1, 4) and lr > 0.06)
    run = tiny.start(tmp_path / "run", **CONSTANT)
    assert [(row["step"], row["failed"]) for row in interventions(run)] == [(0, 1)]
    assert run.backbone_path.read_bytes() == half.backbone_path.read_bytes()


def test_after_three_tries_it_stops_and_explains(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, lambda step, lr: step == 8)
    with pytest.raises(NonFiniteLossError, match=r"^step 8: the loss is nan\. .*at 0\.5, 0\.25, 0\.125 times") as error:
        tiny.start(tmp_path / "run", **CONSTANT)
    run = Run(tmp_path / "run")
    assert str(error.value).endswith(f"ssole replay {run.path / 'failures' / 'step-00000008'}")
    *rates, end = interventions(run)
    assert [(row["step"], row["rate"]) for row in rates] == [(5, 0.5), (5, 0.25), (5, 0.125)]
    assert (end["step"], end["guardian"], end["reason"]) == (8, "stop", "the loss is nan")
    assert end["bundle"] == "failures/step-00000008"
    assert not run.finished
    with pytest.raises(NonFiniteLossError, match=r"^step 8: "):  # once stopped, it stops there again
        tiny.resume(run)
    assert [{**row, "seconds": 0} for row in interventions(run)] == [{**row, "seconds": 0} for row in (*rates, end)]


def test_a_bundle_that_a_full_disk_refuses_ends_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*given: Any) -> Path:
        with small_files():
            return save_bundle(*given)

    inject(monkeypatch, lambda step, lr: step == 8 and lr > 0.06)
    monkeypatch.setattr(guardian, "save_bundle", save)
    with pytest.warns(UserWarning, match=r"no replay bundle of step 8 could be written: .*/tensors\.safetensors"):
        run = tiny.start(tmp_path / "run", **CONSTANT)
    assert [row["bundle"] for row in interventions(run)] == [None]
    assert run.finished


def test_the_first_step_fails_at_every_rate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, lambda step, lr: step == 1)
    with pytest.raises(NonFiniteLossError, match=r"^step 1: the loss is nan"):
        tiny.start(tmp_path / "run", **CONSTANT)
    rows = Run(tmp_path / "run").metrics
    assert [(row["step"], row["guardian"]) for row in rows] == [*3 * [(0, "lower rate")], (1, "stop")]


def test_it_can_be_switched_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    inject(monkeypatch, lambda step, lr: step == 8)
    with pytest.raises(NonFiniteLossError, match=r"lower optim\.lr, or set"):
        tiny.start(tmp_path / "run", guardian="off")
    assert interventions(Run(tmp_path / "run")) == []
    assert not (tmp_path / "run" / "failures").exists()


def send_sigterm(monkeypatch: pytest.MonkeyPatch, at: int) -> None:
    """SIGTERM to this process in a step."""
    take = Learner.step

    def steps(learner: Learner, *arguments: Any, **named: Any) -> Any:
        if learner.steps_done + 1 == at:
            signal.raise_signal(signal.SIGTERM)
        return take(learner, *arguments, **named)

    monkeypatch.setattr(Learner, "step", steps)


def test_a_run_that_an_older_version_began_goes_back_to_what_it_has(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patch:
        send_sigterm(patch, 3)
        with pytest.raises(Interrupted):
            tiny.start(tmp_path / "run", **CONSTANT)
    run = Run(tmp_path / "run")
    for file in run.checkpoints.glob("step-00000000.*"):  # which it did not write
        file.unlink()
    inject(monkeypatch, lambda step, lr: step == 4 and lr > 0.06)
    tiny.resume(run)
    assert [(row["step"], row["failed"]) for row in interventions(run)] == [(3, 4)]


@pytest.mark.parametrize("step", [2, 7, 8, 9, 11])
@pytest.mark.parametrize("crashes", [False, True])
def test_an_interruption_before_or_after_changes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int, crashes: bool
) -> None:
    """A crash loses the steps since a checkpoint; a signal saves one that an undisturbed run does not have."""
    inject(monkeypatch, lambda step, lr: step in (8, 10) and lr > (0.06 if step == 8 else 0.03))
    whole = tiny.start(tmp_path / "whole", **CONSTANT)
    assert [(row["step"], row["rate"]) for row in interventions(whole)] == [(5, 0.5), (5, 0.25)]
    with monkeypatch.context() as patch:
        if not crashes:
            send_sigterm(patch, step)
        with pytest.raises(Crash if crashes else Interrupted):
            tiny.start(tmp_path / "run", **CONSTANT, evaluators={step: crash} if crashes else {})
    run = Run(tmp_path / "run")
    if not crashes and step == 7:
        assert checkpoint_steps(run) == [5, 7]  # that of step 7 is dropped when step 8 fails
    tiny.resume(run)
    assert run.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert [(row["step"], row.get("loss"), row.get("rate")) for row in run.metrics] == [
        (row["step"], row.get("loss"), row.get("rate")) for row in whole.metrics
    ]


def test_a_watch_that_looks_late_takes_the_steps_again_to_find_the_weights_before(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As on an accelerator, which looks when something is logged."""
    inject(monkeypatch, lambda step, lr: step == 7 and lr > 0.06)
    monkeypatch.setattr(LossWatch, "looks_at_once", lambda self, step: step <= self.at_once_until)
    run = tiny.start(tmp_path / "run", **CONSTANT, log_every=4)
    assert [(row["guardian"], row["failed"]) for row in interventions(run)] == [
        ("look at each step", 7),
        ("lower rate", 7),
    ]
    assert run.finished


# Collapse


def collapse(monkeypatch: pytest.MonkeyPatch, steps: range) -> None:
    """Embeddings that are all the same in some steps, counted from 1; a collapse of 6 steps stops a run."""
    take = Learner.step

    def step(self: Learner, *arguments: Any, **named: Any) -> Any:
        result = take(self, *arguments, **named)
        return result._replace(z_BVD=torch.ones_like(result.z_BVD)) if self.steps_done in steps else result

    monkeypatch.setattr(Learner, "step", step)
    monkeypatch.setattr(guardian, "LEAST_STEPS", 6)


REASON = (
    "the embeddings have collapsed: all images look nearly alike to the network, with an effective rank of 1.00 since "
    "step {}. Raise loss.high_rank_weight (now 0.6), or lower optim.lr (now 0.1)"
)


def test_a_collapse_is_warned_of_and_then_stops_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collapse(monkeypatch, range(3, 13))
    with pytest.raises(CollapseError) as error:
        tiny.start(tmp_path / "run")
    run = Run(tmp_path / "run")
    assert str(error.value).startswith(f"step 9: {REASON.format(3)}. To go on regardless, set guardian: off in config")
    assert [(row["step"], row["guardian"], row["reason"]) for row in interventions(run)] == [
        (6, "warning", REASON.format(3)),
        (9, "stop", REASON.format(3)),
    ]
    assert not run.finished
    file = run.path / "config.yaml"  # now what the message says, word for word
    file.write_text(file.read_text().replace("guardian: auto", "guardian: off"))
    with pytest.warns(UserWarning, match="guardian was 'auto' and is 'off'"):
        assert tiny.resume(run, allow_changes=["settings"]).finished


def test_a_collapse_that_ends_is_forgotten(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        collapse(patch, range(2, 8))
        run = tiny.start(tmp_path / "run")
    assert [row["step"] for row in interventions(run)] == [5]
    with monkeypatch.context() as patch:
        collapse(patch, range(5, 8))
        assert interventions(tiny.start(tmp_path / "shorter")) == []


@pytest.mark.parametrize("step", [4, 6, 8])
def test_an_interruption_does_not_change_when_it_stops(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: int
) -> None:
    collapse(monkeypatch, range(3, 13))
    with pytest.raises(Crash):
        tiny.start(tmp_path / "run", evaluators={step: crash}, checkpoint_every=2)
    with pytest.raises(CollapseError, match=r"^step 9: "):
        tiny.resume(tmp_path / "run")
    with pytest.raises(CollapseError, match=r"^step 9: "):  # once stopped, it stops there again
        tiny.resume(tmp_path / "run")
    assert [(row["step"], row["guardian"]) for row in interventions(Run(tmp_path / "run"))] == [
        (6, "warning"),
        (9, "stop"),
    ]


def test_going_back_before_a_warning_forgets_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collapse(monkeypatch, range(3, 13))
    inject(monkeypatch, lambda step, lr: step == 8 and lr > 0.06)
    with pytest.raises(CollapseError, match=r"^step 9: "):
        tiny.start(tmp_path / "run", **CONSTANT)
    rows = [(row["step"], row["guardian"]) for row in interventions(Run(tmp_path / "run"))]
    assert rows == [(5, "lower rate"), (6, "warning"), (9, "stop")]


def test_a_collapse_is_let_be_when_the_guardian_is_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    collapse(monkeypatch, range(3, 13))
    assert interventions(tiny.start(tmp_path / "run", guardian="off")) == []


def test_patience_grows_with_the_run_and_its_warmup() -> None:
    assert guardian.patience(tiny.config(), 1000) == 200
    assert guardian.patience(tiny.config(), 100_000) == 2000
    assert guardian.patience(tiny.config(optim__warmup_steps=2500), 100_000) == 5000


def test_the_rank_is_seen_against_the_most_possible() -> None:
    assert guardian.rank_share({"effective_rank": 4.0}, tiny.config()) == 1  # of 4 images
    assert guardian.rank_share({"effective_rank": 4.5}, tiny.config(batch_size=16)) == 0.5  # in 8 dimensions
    assert guardian.rank_share({"effective_rank": 1.0}, tiny.config()) == 0


@pytest.mark.parametrize("name", [name for name in LOSS_CONFIGS if name != "custom"])
def test_the_advice_names_settings_that_there_are(name: str) -> None:
    config = tiny.config(loss__name=name)
    named = re.findall(r"(loss|optim)\.(\w+)", guardian._advice(config))
    assert ("optim", "lr") in named
    assert all(hasattr(getattr(config, group), setting) for group, setting in named)


def test_a_run_that_turns_out_to_be_longer_has_more_patience(tmp_path: Path) -> None:
    """As one with a budget of time, whose steps are counted anew."""
    run = create_run(tmp_path / "run", tiny.config())
    learner, pace = Learner(run.config, torch.device("cpu")), SimpleNamespace(total=12)
    one = guardian.Guardian(run, learner, pace)  # type: ignore[arg-type]
    notes: list[tuple[int, Any]] = []

    def collapsed(step: int) -> None:
        one.look({"step": step, "effective_rank": 1.0}, lambda at, facts: notes.append((at, facts["guardian"])))

    collapsed(0)
    collapsed(guardian.LEAST_STEPS - 1)
    assert notes == [(guardian.LEAST_STEPS - 1, "warning")]
    pace.total = 100 * guardian.LEAST_STEPS
    collapsed(guardian.LEAST_STEPS)
    assert len(notes) == 1
    pace.total = 12
    with pytest.raises(CollapseError):
        collapsed(guardian.LEAST_STEPS + 1)


@pytest.mark.parametrize("every", [2, 4])
def test_weights_that_are_not_finite_are_found_before_they_are_evaluated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, every: int
) -> None:
    """An update that overflows, as of too large a learning rate, is a failed step and no failed evaluation."""
    original, spoiled = Learner.descend, list[int]()

    def descend(self: Learner, loss: torch.Tensor) -> None:
        original(self, loss)
        if self.steps_done + 1 == 8 and not spoiled:
            spoiled.append(8)
            with torch.no_grad():
                next(self.encoder.parameters()).fill_(math.inf)

    def figure(backbone: torch.nn.Module) -> dict[str, float]:
        assert all(bool(weight.isfinite().all()) for weight in backbone.parameters())
        return {"figure": 1.0}

    monkeypatch.setattr(Learner, "descend", descend)
    finished = tiny.start(tmp_path / "run", evaluators={every: figure}, checkpoint_every=3, **CONSTANT)
    (row,) = interventions(finished)
    assert (row["failed"], row["rate"]) == (8, 0.5)
    assert "left weights that are not finite" in row["reason"]
    assert finished.finished
