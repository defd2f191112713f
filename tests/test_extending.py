"""Extended runs: their learning rates, exactness after a crash, and what is refused."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

import tiny
from ssole import export, extending
from ssole.config import ConfigError, OptimConfig
from ssole.evaluation.results import EvaluationResult, Score
from ssole.report.record import Record
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.feed import make_plan
from ssole.training.loop import _title
from ssole.training.pace import Extension, Pace, extensions
from ssole.training.run import Run, create_run
from ssole.training.step import Learner
from tiny import Crash, crash, figures

KEPT = f"backbone-step-{tiny.STEPS:08d}.safetensors"


def extend(run: Run, evaluators: Mapping[int, Any] | None = None, **given: Any) -> Run:
    torch.set_num_threads(1)
    return extending.extend(run, data=tiny.images(), progress=False, evaluators=evaluators, **given)


def test_learning_rate_of_a_step() -> None:
    one, optim = Extension(step=100, total=121, factor=0.5), OptimConfig(lr=2.0, final_lr=1.0, warmup_steps=0)
    rates = [one.learning_rate(step, optim) for step in (100, 110, 120)]
    assert rates == pytest.approx([1.0, 0.75, 0.5])  # a half cosine from lr to final_lr, times the factor
    assert one.learning_rate(100, OptimConfig(lr=2.0, warmup_steps=4)) == pytest.approx(0.25)


@pytest.mark.parametrize("settings", [{}, {"model__stem_init": "whitening", "optim__name": "adamw"}])
def test_an_extension_that_crashed_is_resumed_exactly(tmp_path: Path, settings: dict[str, Any]) -> None:
    runs = [tiny.start(tmp_path / name, **settings) for name in ("whole", "crashed")]
    before = runs[0].backbone_path.read_bytes()
    whole = extend(runs[0], steps=7)
    assert [row["step"] for row in whole.metrics] == list(range(1, tiny.STEPS + 8))
    assert whole.metrics[tiny.STEPS]["lr"] == pytest.approx(0.5 * whole.metrics[0]["lr"])
    assert (whole.path / KEPT).read_bytes() == before
    assert whole.backbone_path.read_bytes() != before

    for attempt, step in enumerate((14, 17)):
        with pytest.raises(Crash):
            extend(runs[1], {step: crash}, steps=7) if attempt == 0 else tiny.resume(runs[1], evaluators={step: crash})
        assert not runs[1].finished
        assert (runs[1].path / KEPT).read_bytes() == before
    with pytest.raises(ConfigError, match=r"has not finished: go on with it first, ssole pretrain --resume"):
        extend(runs[1], steps=7)
    resumed = tiny.resume(runs[1])
    assert resumed.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert figures(resumed) == figures(whole)


def test_torchrun_goes_on_with_an_extension_that_it_starts_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = [tiny.start(tmp_path / name) for name in ("whole", "crashed")]
    whole = extend(runs[0], epochs=1)
    with pytest.raises(Crash):
        extend(runs[1], {14: crash}, epochs=1)
    monkeypatch.setenv("TORCHELASTIC_MAX_RESTARTS", "1")
    for other in ({"epochs": 2}, {"steps": 1}, {"epochs": 1, "factor": 0.1}):
        with pytest.raises(ConfigError, match=r"has not finished: go on with it first"):
            extend(runs[1], **other)
    resumed = extend(runs[1], epochs=1)
    assert resumed.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert figures(resumed) == figures(whole)
    with pytest.raises(ConfigError, match=r"has not finished: go on with it first"):
        extend(create_run(tmp_path / "begun", tiny.config()), epochs=1)


def test_after_a_budget_of_time_an_extension_has_its_own_steps(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", tiny.config(budget="1m"))
    (run.path / "schedule.jsonl").write_text('{"step": 4, "total": 30}\n')
    (run.path / "extensions.jsonl").write_text('{"step": 30, "total": 40, "factor": 0.5}\n')
    plan = make_plan(tiny.config(steps=20), tiny.IMAGES)
    pace = Pace(run, plan)
    assert pace.total == 40
    title = _title(Learner(run.config, torch.device("cpu")), plan, pace)
    assert f"{tiny.IMAGES} images, 40 steps of" in title  # and not the budget, which is no longer obeyed
    assert pace.learning_rate(29) == pytest.approx(0.0)
    assert pace.learning_rate(30) == pytest.approx(0.05)
    pace.start(30, 1e9)  # the budget is long gone, and does not count
    assert [pace.advance(step) for step in (30, 38, 39)] == [False, False, True]
    assert [step for step in range(1, 41) if pace.is_last(step)] == [30, 40]


def test_epochs_and_a_second_extension(tmp_path: Path) -> None:
    run = extend(tiny.start(tmp_path / "run"), epochs=1)
    extend(run, steps=2, factor=0.1)
    first, second = extensions(run)
    assert first == Extension(step=tiny.STEPS, total=tiny.STEPS + tiny.STEPS_PER_EPOCH, factor=0.5)
    assert second == Extension(step=first.total, total=first.total + 2, factor=0.1)
    assert run.metrics[-2]["lr"] == pytest.approx(0.01)
    assert len(run.metrics) == second.total
    assert {path.name for path in run.path.glob("backbone*")} == {
        "backbone.safetensors",
        "backbone-step-00000012.safetensors",
        "backbone-step-00000017.safetensors",
    }


def test_figures_stay_with_their_weights(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run")
    result = EvaluationResult(rows={"trained": {"knn20": Score.accuracy(0.5, 99)}}, train="a", test="b")
    for name in ("evaluation.json", "evaluation-2.json", "transfer.json"):
        result.save(run.path / name)
    extend(run, steps=1)
    assert not (run.path / "evaluation-2.json").exists()
    assert Record.read(run.path).evaluation is None
    assert not (run.path / "transfer.json").exists()
    cards = [
        (export(weights, to="timm", out=tmp_path / weights.stem) / "README.md").read_text(encoding="utf-8")
        for weights in (run.backbone_path, run.path / KEPT)
    ]
    assert ["Not measured: `ssole eval` measures it" in card for card in cards] == [True, False]
    assert "| trained | 50.0 % ± 5.0 |" in cards[1]


@pytest.mark.parametrize("error", [Crash(), OSError(28, "No space left on device")])
def test_an_extension_that_was_interrupted_is_made_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    run, replace = tiny.start(tmp_path / "run"), os.replace
    before = run.backbone_path.read_bytes()

    def stopping_at(name: str) -> Callable[[Path, Path], None]:
        def renamed(old: Path, new: Path) -> None:
            if Path(old).name == name:
                raise error
            replace(old, new)

        return renamed

    for last in ("index", "backbone.safetensors"):
        for name in ("export", "index"):
            (run.path / name).mkdir(exist_ok=True)
            (run.path / name / "file").touch()
        with monkeypatch.context() as patch:
            patch.setattr(os, "replace", stopping_at(last))
            with pytest.raises(type(error)) as told:
                extend(run, steps=3, factor=0.25)
        assert run.finished
        if isinstance(error, OSError):
            words = "could not begin (No space left on device), and its weights are as they were. Once this is fixed, "
            assert f"{words}extend it again: ssole extend {run.path} --steps 3 --factor 0.25" in str(told.value)
    extend(run, steps=2)
    assert (run.path / KEPT).read_bytes() == before
    assert extensions(run) == [Extension(step=tiny.STEPS, total=tiny.STEPS + 2, factor=0.5)]
    assert len(run.metrics) == tiny.STEPS + 2
    kept = {f"{name}-step-{tiny.STEPS:08d}{number}" for name in ("export", "index") for number in ("", "-2")}
    assert {path.parent.name for path in run.path.glob("*/file")} == kept - {f"index-step-{tiny.STEPS:08d}-2"}


@pytest.mark.parametrize(
    ("given", "words"),
    [
        ({}, "give one of --epochs and --steps"),
        ({"epochs": 1, "steps": 1}, "give one of --epochs and --steps"),
        ({"steps": 0}, "at least 1 step, got epochs = None, steps = 0"),
        ({"epochs": -1}, "at least 1 step, got epochs = -1"),
        ({"steps": 2.5}, "whole epochs or steps, .*steps = 2.5"),
        ({"steps": 1, "factor": 0.0}, "positive and finite, got 0.0"),
        ({"steps": 1, "factor": float("nan")}, "positive and finite, got nan"),
    ],
)
def test_wrong_numbers_change_nothing(tmp_path: Path, given: dict[str, Any], words: str) -> None:
    run = Run(tmp_path)
    (tmp_path / "config.yaml").write_text("steps: 3\n")
    with pytest.raises(ConfigError, match=words):
        extend(run, **given)
    assert [path.name for path in tmp_path.iterdir()] == ["config.yaml"]


@pytest.mark.parametrize("reason", ["disk", "evaluators"])
def test_a_refusal_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reason: str) -> None:
    run = tiny.start(tmp_path / "run")
    before = {path.name: path.read_bytes() for path in run.path.rglob("*") if path.is_file()}
    if reason == "disk":
        monkeypatch.setattr("shutil.disk_usage", lambda path: SimpleNamespace(free=0))
        with pytest.raises(ConfigError, match=r"free: make room$"):
            extend(run, steps=3)
    else:
        with pytest.raises(ConfigError, match=r"at least 1; got 0"):
            extend(run, {0: figures}, steps=3)
    assert run.finished
    assert {path.name: path.read_bytes() for path in run.path.rglob("*") if path.is_file()} == before


def test_runs_that_cannot_be_extended(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run")
    with pytest.raises(ConfigError, match="is not a run folder"):
        extend(Run(tmp_path), steps=1)
    for line in (
        "x",
        '{"step": 12}',
        '{"step": 12, "total": 3, "factor": 1}',
        '{"step": 2, "total": 3, "factor": NaN}',
    ):
        (run.path / "extensions.jsonl").write_text(f"{line}\n")
        with pytest.raises(ConfigError, match=r"extensions\.jsonl is damaged"):
            extend(run, steps=1)
    assert run.finished
    (run.path / "extensions.jsonl").unlink()
    for path in run.checkpoints.glob("*12*"):
        path.unlink()
    with pytest.raises(ConfigError, match=r"ended with step 12, and its newest checkpoint is of step 10: .*--init"):
        extend(run, steps=1)
    assert checkpoint_steps(run) == [10]
    assert run.finished


def test_an_extension_in_which_the_rate_only_rises_is_a_warning(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", optim__warmup_steps=2)
    with pytest.warns(UserWarning, match=r"the extension has 2 steps, and its learning rate rises for 2"):
        extend(run, steps=2)
