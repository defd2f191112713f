"""A signal is answered at once where the loop waits or evaluates; the run then goes on as if nobody had stopped it."""

from __future__ import annotations

import signal
import time
from pathlib import Path
from typing import Any

import pytest
from torch import nn

import tiny
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.feed import Feed
from ssole.training.run import Run
from ssole.training.stopping import Interrupted

CLOCK = {"seconds", "images_per_second", "data_wait"}


def measure(backbone: nn.Module) -> dict[str, float]:
    return {"weights": float(sum(p.detach().double().sum() for p in backbone.parameters()))}


def mean(backbone: nn.Module) -> dict[str, float]:
    return {"mean": measure(backbone)["weights"] / 2}


class Long:
    """Evaluator that gets a signal and then takes too long, once: in its call of this number."""

    def __init__(self, call: int) -> None:
        self.calls, self._call = 0, call

    def __call__(self, backbone: nn.Module) -> dict[str, float]:
        self.calls += 1
        if self.calls == self._call:
            backbone.eval()
            signal.raise_signal(signal.SIGTERM)
            raise AssertionError("it went on after the signal")
        return mean(backbone)


def rows(run: Run) -> list[dict[str, Any]]:
    return [{name: value for name, value in row.items() if name not in CLOCK} for row in run.metrics]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Run:
    return tiny.start(tmp_path_factory.mktemp("whole") / "run", evaluators={3: measure, 6: mean})


def assert_same(run: Run, whole: Run) -> None:
    assert run.backbone_path.read_bytes() == whole.backbone_path.read_bytes()
    assert rows(run) == rows(whole)


@pytest.mark.parametrize(("call", "step"), [(1, 6), (2, 12)])
def test_an_evaluation_is_left_and_made_after_resuming(tmp_path: Path, whole: Run, call: int, step: int) -> None:
    with pytest.raises(Interrupted, match=f"stopped after step {step};") as stopped:
        tiny.start(tmp_path / "run", evaluators={3: measure, 6: Long(call)})
    assert stopped.value.signal_number == signal.SIGTERM
    run = Run(tmp_path / "run")
    assert checkpoint_steps(run)[-1] == step
    assert not run.finished
    tiny.resume(run, evaluators={3: measure, 6: mean})
    assert_same(run, whole)


def wait_for(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """A batch that does not come, and a signal meanwhile."""
    finish = Feed._finish

    def late(self: Feed, number: int, *arguments: Any) -> Any:
        if number + 1 == step:
            signal.raise_signal(signal.SIGTERM)
            time.sleep(600)
        return finish(self, number, *arguments)

    monkeypatch.setattr(Feed, "_finish", late)


def test_a_wait_for_images_is_left(tmp_path: Path, whole: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        wait_for(patch, 8)
        with pytest.raises(Interrupted, match="stopped after step 7;"):
            tiny.start(tmp_path / "run", evaluators={3: measure, 6: mean})
    run = Run(tmp_path / "run")
    assert checkpoint_steps(run)[-1] == 7
    tiny.resume(run, evaluators={3: measure, 6: mean})
    assert_same(run, whole)


def test_before_the_first_step_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    wait_for(monkeypatch, 1)
    with pytest.raises(Interrupted, match="before the first step"):
        tiny.start(tmp_path / "run")
    assert not (tmp_path / "run").exists()
