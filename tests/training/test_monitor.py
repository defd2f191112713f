"""Monitor: metrics, the share of time spent waiting for images, and what a plain terminal shows."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

import ranks
import tiny
from listed import Listed, png
from ssole import distributed
from ssole.distributed import Stopping
from ssole.training import monitor as module
from ssole.training import screen
from ssole.training.checkpoint import Progress
from ssole.training.monitor import Monitor, WaitShare
from ssole.training.run import Run


def test_the_share_is_of_the_time() -> None:
    waiting = WaitShare()
    assert waiting.share == 0
    waiting.add(0.0, 5.0)  # what was waited before the start does not count
    assert waiting.share == 0
    for second in range(1, 11):
        waiting.add(second, 5.0 + 0.25 * second)
    assert waiting.share == pytest.approx(0.25)


def test_the_share_is_of_the_last_minute() -> None:
    waiting = WaitShare()
    for second in range(101):
        waiting.add(second, min(second, 50))  # fifty seconds of nothing but waiting, then none
    assert waiting.share == pytest.approx(10 / 60)
    for second in range(101, 200):
        waiting.add(second, 50)
    assert waiting.share == 0


def test_one_step_longer_than_the_window() -> None:
    waiting = WaitShare()
    for hour in range(3):
        waiting.add(3600 * hour, 900 * hour)
    assert waiting.share == pytest.approx(0.25)


def test_it_exceeds_a_limit_only_when_it_lasts() -> None:
    waiting = WaitShare()
    for second in range(29):
        waiting.add(second, second)
        assert not waiting.exceeds(0.2)
    waiting.add(31, 29)
    assert waiting.exceeds(0.2)
    assert not waiting.exceeds(0.99)


class Clock:
    """A monitor in a world whose time is what we say, over a feed that is waited for as long as we say."""

    def __init__(self, folder: Path, monkeypatch: pytest.MonkeyPatch, hint: str | None) -> None:
        self.now, self.waited, self.text = 0.0, 0.0, hint
        for part in (module, screen):
            monkeypatch.setattr(part, "time", SimpleNamespace(perf_counter=lambda: self.now))
        done = Progress(step=0, images=10, seconds=0.0)
        self.run = Run(folder)
        self.monitor = Monitor(self.run, "a title", total=1000, done=done, feed=self, progress=True)

    def hint(self) -> str | None:
        return self.text

    def train(self, seconds: int, share: float) -> None:
        """Steps of one second, of which a share is waiting."""
        terms = {name: torch.tensor(1.0) for name in ("loss", "low_rank", "high_rank")}
        for _ in range(seconds):
            self.now += 1
            self.waited += share
            self.monitor.advance(4, 1000)
            self.monitor.log(0, 0.1, terms, torch.randn(4, 2, 3))


def test_long_waits_are_shown_written_and_hinted_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(tmp_path, monkeypatch, "use a faster disk")
    with clock.monitor:
        clock.train(100, 0.1)
        assert "faster disk" not in capsys.readouterr().err
        clock.train(200, 0.5)
    shown = capsys.readouterr().err
    assert shown.count("of the time is spent waiting for data: use a faster disk") == 1
    assert "waiting for data: 50%" in shown
    waits = [row["data_wait"] for row in clock.run.metrics]
    assert waits[99] == pytest.approx(0.1)
    assert waits[-1] == pytest.approx(0.5)


def test_no_hint_while_the_cache_is_filled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    clock = Clock(tmp_path, monkeypatch, None)
    with clock.monitor:
        clock.train(100, 0.6)
        shown = capsys.readouterr().err
        assert "waiting for data: 60% (while images are decoded, and kept for later epochs)" in shown
        assert "of the time" not in shown
        clock.text = "use a faster disk"
        clock.train(1, 0.6)
    assert "60% of the time is spent waiting for data: use a faster disk" in capsys.readouterr().err


def test_an_evaluation_that_is_left_is_no_training_either(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(tmp_path, monkeypatch, None)

    def leave(backbone: nn.Module) -> dict[str, float]:
        clock.now += 60
        raise Stopping

    with clock.monitor:
        clock.train(10, 0.0)
        with pytest.raises(Stopping):
            clock.monitor.evaluate(leave, nn.Identity())
        assert (clock.monitor.seconds, clock.monitor.evaluating) == (10, 60)


def test_tensorboard_gets_the_numbers_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A bundle that could not be written is None, which a board takes for an error."""
    shown: dict[str, float] = {}
    board = SimpleNamespace(add_scalar=lambda name, value, _: shown.update({name: float(value)}), close=lambda: None)
    monkeypatch.setattr(module, "_tensorboard", lambda *_: board)
    clock = Clock(tmp_path, monkeypatch, None)
    with clock.monitor:
        clock.now = 1.0
        clock.monitor.note(2, {"guardian": "stop", "failed": 2, "bundle": None})
    assert clock.run.metrics[-1] == {"step": 2, "seconds": 1.0, "guardian": "stop", "failed": 2, "bundle": None}
    assert shown == {"seconds": 1.0, "failed": 2.0}


def test_training_decodes_each_image_once_and_logs_its_waits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SSOLE_CACHE", str(tmp_path / "cache"))
    source = Listed([png(12 + i % 2, 12, i) for i in range(tiny.IMAGES)], seconds=0.05)
    run = tiny.start(tmp_path / "run", data=source)
    waits = [row["data_wait"] for row in run.metrics]
    assert 0 < waits[0] <= 1
    assert all(0 <= wait <= 1 for wait in waits)
    looked_at = tiny.IMAGES  # to see whether sizes differ
    assert len(source.reads) <= looked_at + tiny.IMAGES  # in 2.4 epochs


def test_a_figure_that_is_not_finite_is_null(tmp_path: Path) -> None:
    figures = {"a": float("nan"), "b": -float("inf"), "c": 1}
    run = tiny.start(tmp_path / "run", steps=1, loss=WithoutNumber(), evaluators={9: lambda backbone: figures})
    text = (run.path / "metrics.jsonl").read_text()
    assert '"a": null, "b": null, "c": 1.0}' in text
    assert '"term": null, ' in text


class WithoutNumber(nn.Module):
    """A loss with a term that is not a number."""

    def forward(self, z: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": z.square().mean(), "term": torch.tensor(torch.nan)}


@pytest.mark.parametrize("figure", ["high", None, torch.zeros(2)])
def test_a_figure_that_is_no_number_is_named(figure: object) -> None:
    with pytest.raises(ValueError, match="the figure 'a' of an evaluator is a number; got "):
        module.figures_of(lambda backbone: {"a": figure}, nn.Identity())


def advance_where_nothing_can_be_written(folder: Path) -> None:
    feed: Any = SimpleNamespace(waited=0.0)
    done = Progress(step=0, images=10, seconds=0.0)
    with distributed.processes(60):
        error = OSError if distributed.rank() == 0 else distributed.ElsewhereError
        with Monitor(Run(folder), "a title", total=9, done=done, feed=feed, progress=False) as monitor:
            with pytest.raises(error, match="could not be written"):
                monitor.advance(4, 9)
            with pytest.raises(error, match="could not be written"):
                monitor.evaluate(lambda backbone: {"figure": 1.0}, nn.Identity())


def test_other_processes_hear_of_metrics_that_cannot_be_written(tmp_path: Path) -> None:
    """They would wait for the first one otherwise, until it is taken for dead."""
    (tmp_path / "metrics.jsonl").mkdir()  # so that no such file can be opened
    ranks.run(2, advance_where_nothing_can_be_written, tmp_path)
