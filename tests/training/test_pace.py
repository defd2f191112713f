"""Length and schedule of runs: fixed, or by a budget of time on a machine whose speed changes."""

from __future__ import annotations

import itertools
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

import tiny
from ssole import api, extending
from ssole.config import ConfigError
from ssole.training import monitor
from ssole.training import pace as module
from ssole.training.feed import Plan, make_plan
from ssole.training.pace import Pace
from ssole.training.run import Run, create_run


class Clock:
    """Clock that stands still until a step is taken."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.now = 1000.0
        monkeypatch.setattr(module, "monotonic", lambda: self.now)

    def drive(self, pace: Pace, seconds: Callable[[float], float], step: int = 0) -> int:
        """Take steps to the end, each of so many seconds as `seconds` says at its time: the number of steps."""
        while True:
            self.now += seconds(self.now - 1000)
            step += 1
            if pace.advance(step - 1):
                return step


def plan(total: int) -> Plan:
    return Plan(images=22, batch_size=4, seed=0, total=total)


def budgeted(folder: Path, expected: int, budget: str = "100s", spent: float = 0.0) -> Pace:
    pace = Pace(create_run(folder / "run", tiny.config(budget=budget)), plan(expected))
    pace.start(0, spent)
    return pace


def test_without_a_budget_steps_are_as_planned(tmp_path: Path) -> None:
    run = create_run(tmp_path / "run", tiny.config(steps=50))
    pace = Pace(run, plan(50))
    pace.start(10, 0.0)
    assert [pace.position(step) for step in range(50)] == list(range(50))
    assert [step for step in range(10, 50) if pace.advance(step)] == [49]
    assert pace.plan.total == 50
    assert not (run.path / "schedule.jsonl").exists()


@pytest.mark.parametrize("line", ["x", '{"step": 3}', '{"step": 3, "total": -5}', '{"step": 0, "total": 5}'])
def test_a_damaged_record_of_corrections_is_named(tmp_path: Path, line: str) -> None:
    run = create_run(tmp_path / "run", tiny.config(budget="100s"))
    (run.path / "schedule.jsonl").write_text(f"{line}\n")
    with pytest.raises(ConfigError, match=r"schedule\.jsonl is damaged"):
        Pace(run, plan(50))


SPEEDS: dict[str, Callable[[float], float]] = {
    "as expected": lambda now: 0.1,
    "three times faster than expected": lambda now: 0.0333,
    "five times slower than expected": lambda now: 0.5,
    "slower from half on": lambda now: 0.1 if now < 50 else 0.3,
    "faster from half on": lambda now: 0.1 if now < 50 else 0.04,
    "busy every ten seconds": lambda now: 0.1 if int(now / 10) % 2 else 0.2,
    "slower near the end": lambda now: 0.1 if now < 92 else 0.25,
    "a long first step": lambda now: 20.0 if now == 0 else 0.1,
}


@pytest.mark.parametrize("speed", SPEEDS)
@pytest.mark.parametrize("spent", [0.0, 7.0])
def test_a_run_ends_with_its_budget(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, speed: str, spent: float) -> None:
    clock = Clock(monkeypatch)
    pace = budgeted(tmp_path, 1000, spent=spent)
    steps = clock.drive(pace, SPEEDS[speed])
    assert clock.now - 1000 + spent == pytest.approx(100, abs=3)
    positions = [pace.position(step) for step in range(steps)]
    assert positions[0] == 0
    assert positions[-1] == pytest.approx(999, rel=0.01)
    assert all(later > earlier for earlier, later in itertools.pairwise(positions))
    rates = [pace.learning_rate(step) for step in range(steps)]
    assert rates[0] == 0.1
    assert rates[-1] < 1e-4  # the schedule comes to its end
    fall = max(earlier - later for earlier, later in itertools.pairwise(rates))
    assert fall < 0.1 * 10 * math.pi / steps  # and never jumps: no step is longer than ten even ones


def test_steps_that_a_gpu_has_not_taken_yet_are_no_speed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host launches steps in a tenth of the time that they take, until it has to wait for them."""
    clock, owed, gpu = Clock(monkeypatch), 0.0, torch.device("cuda")

    def wait(device: torch.device) -> None:
        nonlocal owed
        assert device == gpu
        clock.now, owed = clock.now + owed, 0.0

    monkeypatch.setattr(module, "synchronize", wait)
    pace = Pace(create_run(tmp_path / "run", tiny.config(budget="100s")), plan(1000), device=gpu)
    pace.start(0, 0.0)
    for step in range(60):
        clock.now, owed = clock.now + 0.02, owed + 0.18
        pace.advance(step)
    assert pace.total == pytest.approx(500, abs=5)


def test_corrections_leave_earlier_steps_as_they_were(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = budgeted(tmp_path, 1000)
    before = {}
    for step in range(300):
        before[step] = pace.position(step)
        clock.now += 0.2
        assert not pace.advance(step)
    assert {step: pace.position(step) for step in before} == before
    assert pace.total < 520


def test_a_resumed_run_follows_its_corrections_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = budgeted(tmp_path, 100)
    for step in range(40):
        clock.now += 2.0
        pace.advance(step)
    again = Pace(Run(tmp_path / "run"), plan(100))
    again.start(20, spent=40.0)
    assert again.total == pace.total < 60
    assert [again.position(step) for step in range(45)] == [pace.position(step) for step in range(45)]
    end = clock.drive(again, lambda _: 0.5, step=20)
    assert clock.now - 1000 == pytest.approx(100 + 40, abs=3)  # of which the first process lost 40 s
    assert end > pace.total  # the machine is faster now


def test_the_clock_goes_on_when_the_guardian_goes_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = budgeted(tmp_path, 100)
    for step in range(30):
        clock.now += 1.0
        pace.advance(step)
    clock.now += 20.0  # of evaluation, which counts too
    pace.start(10)
    clock.drive(pace, lambda _: 1.0, step=10)
    assert clock.now - 1000 == pytest.approx(100, abs=3)


def test_a_resumed_run_counts_the_evaluation_before(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    now, started, start = [0.0], [], Pace.start

    def evaluate(backbone: object) -> dict[str, float]:
        if now[0] == 60:
            raise RuntimeError
        now[0] += 30
        return {"minutes": now[0] / 60}

    def spy(pace: Pace, step: int, spent: float | None = None) -> None:
        started.append((step, spent))
        start(pace, step, spent)

    monkeypatch.setattr(monitor, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    monkeypatch.setattr(Pace, "start", spy)
    with pytest.raises(RuntimeError):  # the third evaluation, after the checkpoint of step 5
        tiny.start(tmp_path / "run", evaluators={2: evaluate})
    now[0] = 0
    run = tiny.resume(tmp_path / "run", evaluators={100: evaluate})
    trained = next(row["seconds"] for row in run.metrics if row["step"] == 5)
    assert started[-1] == (5, pytest.approx(60 + trained, abs=0.01))


def test_a_run_that_has_all_its_steps_takes_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = Clock(monkeypatch)
    pace = budgeted(tmp_path, 100)
    end = clock.drive(pace, lambda _: 2.0)
    again = Pace(Run(tmp_path / "run"), plan(100))
    again.start(end, spent=100.0)
    assert list(again.plan.batches(end)) == []


def trained(folder: Path, clock: Clock, seconds: float) -> Run:
    """A run of 12 expected steps and a budget of 12 s, whose steps take so long."""
    config = tiny.config(budget="12s")
    config = api.dataclasses.replace(config, steps=12, data="in memory: ndarray (22, 12, 12, 3)")
    store = api.ImageStore(api.open_source(tiny.images()))
    run = create_run(folder, config) if not folder.exists() else Run(folder)
    advance = Pace.advance

    def slow(pace: Pace, step: int) -> bool:
        clock.now += seconds
        return advance(pace, step)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Pace, "advance", slow)
        return api.train(run, store, make_plan(config, 22), api.resolve_device("cpu"), api.Given(progress=False))


def test_the_same_corrections_give_the_same_weights(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = trained(tmp_path / "a", Clock(monkeypatch), 0.75)
    rows = run.metrics
    assert rows[-1]["step"] == 16
    assert rows[-1]["lr"] == pytest.approx(0.0, abs=1e-6)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    for name in ("backbone.safetensors", "metrics.jsonl", "checkpoints"):
        path = tmp_path / "b" / name
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    (tmp_path / "b" / "checkpoints").mkdir()
    again = trained(tmp_path / "b", Clock(monkeypatch), 0.9)  # as after a kill before the first checkpoint
    assert [row["lr"] for row in again.metrics] == [row["lr"] for row in rows]
    assert again.backbone_path.read_bytes() == run.backbone_path.read_bytes()


# Smaller crops in the first part


EARLY = {"augment__early_size": 4, "augment__early_share": 0.4}  # of 8 pixels: a quarter of the work, by pixels


def test_the_first_part_of_the_steps_is_early(tmp_path: Path) -> None:
    pace = Pace(create_run(tmp_path / "run", tiny.config(steps=50, **EARLY)), plan(50))
    assert [step for step in range(60) if pace.is_early(step)] == list(range(20))
    whole = Pace(create_run(tmp_path / "whole", tiny.config(steps=50)), plan(50))
    assert not any(whole.is_early(step) for step in range(50))


@pytest.mark.parametrize("early_seconds", [0.25, 0.5, 1.0])
def test_a_budget_counts_with_slower_steps_to_come(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, early_seconds: float
) -> None:
    """Steps take a second in the later part. The first takes 0.25 where time goes with pixels."""
    clock, expected = Clock(monkeypatch), round(1000 / (0.4 * early_seconds + 0.6))
    pace = Pace(create_run(tmp_path / "run", tiny.config(budget="1000s", **EARLY)), plan(expected))
    pace.start(0, 0.0)
    early = 0
    for step in itertools.count():
        early += pace.is_early(step)
        clock.now += early_seconds if pace.is_early(step) else 1.0
        if pace.advance(step):
            break
    assert clock.now - 1000 == pytest.approx(1000, abs=25)
    assert pace.position(step) == pytest.approx(expected - 1, rel=0.01)
    if early_seconds == 0.25:
        assert step + 1 == pytest.approx(expected, abs=3)
        assert early / (step + 1) == pytest.approx(0.4, abs=0.01)


def test_an_extension_has_the_later_crops(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", steps=10, **EARLY)
    extending.extend(run, data=tiny.images(), steps=10, progress=False)
    pace = Pace(run, make_plan(run.config, 22))
    assert [step for step in range(20) if pace.is_early(step)] == [0, 1, 2, 3]
