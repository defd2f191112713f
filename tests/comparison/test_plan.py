"""Plan of a comparison: the search's rungs and draws, steps by arm, measured once, and what is said of their cost."""

from __future__ import annotations

import dataclasses
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from comparing import Broken, compare, request

import tiny
from ssole.comparison import plan
from ssole.comparison.compare import resume_comparison
from ssole.comparison.plan import (
    ArmPlan,
    cost_lines,
    draw_settings,
    measure_plan,
    ranked,
    rungs,
    short_search_notes,
    shortened,
    steps_for_share,
)
from ssole.comparison.request import Arm, make_arms
from ssole.config import LOSS_CONFIGS, ConfigError, SSOLEConfig, apply_overrides
from ssole.data.arrays import ArraySource
from ssole.data.store import ImageStore
from ssole.errors import DataError
from ssole.training.dry_run import TRIAL_SECONDS


@pytest.mark.usefixtures("in_a_folder")
def test_times_become_steps_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "step_seconds", lambda config, *_, **__: 0.5 if config.loss.name == "ssole" else 0.25)
    result = compare(budget="2s", seeds=1)
    assert {name: arm.steps for name, arm in result.arms.items()} == {"ssole": 4, "simclr": 8}
    Path("timed.yaml").write_text(Path("tiny.yaml").read_text() + "budget: 2s\n")
    timed = compare(recipe="timed.yaml", budget=None, out="timed", seeds=1)  # the recipe's own budget
    assert {name: arm.steps for name, arm in timed.arms.items()} == {"ssole": 4, "simclr": 8}
    monkeypatch.setattr(plan, "step_seconds", lambda *_, **__: 9.0)
    assert resume_comparison("out", progress=False).arms["ssole"].steps == 4


@pytest.mark.usefixtures("in_a_folder")
def test_it_says_what_it_will_cost_before_it_trains(capsys: pytest.CaptureFixture[str]) -> None:
    compare(progress=True, search=2, seeds=1)
    said = capsys.readouterr().err
    cost = said.index("ssole: 4 steps of search, 1 run of 6 steps")
    assert cost < said.index("ssole, search-0-trial-0")
    assert "in all about" in said
    assert "less than one epoch" in said


@pytest.mark.usefixtures("in_a_folder")
def test_a_budget_below_a_step_says_what_the_least_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "step_seconds", lambda config, *_, **__: 0.5 if config.loss.name == "ssole" else 0.25)
    with pytest.raises(
        ConfigError, match=r"a budget of 0\.4 s is too small: a step of ssole takes 0\.5 s here\. .* 1s "
    ):
        compare(budget="0.4s", seeds=1)
    with pytest.raises(
        ConfigError, match=r"the shortest runs of the search have 1/3 of the budget\. Give at least 2s "
    ):
        compare(budget="1s", seeds=1, search=2)
    assert compare(budget="2s", seeds=1, search=2).best is not None  # in the same folder


# The functions themselves


@pytest.fixture
def store() -> ImageStore:
    return ImageStore(ArraySource(tiny.images()), progress=False)


def measured(monkeypatch: pytest.MonkeyPatch, *seconds: float | Exception) -> list[dict[str, Any]]:
    """Arguments of the measurements of a step to come; each takes so long, or fails."""
    calls: list[dict[str, Any]] = []

    def measure(config: Any, store: Any, device: Any, **given: Any) -> float:
        calls.append(given | {"config": config})
        found = seconds[len(calls) - 1]
        if isinstance(found, Exception):
            raise found
        return found

    monkeypatch.setattr(plan, "step_seconds", measure)
    return calls


def test_a_share_of_the_steps_is_rounded_and_at_least_one() -> None:
    assert [steps_for_share(steps, 1 / 9) for steps in (1, 4, 9, 14, 100)] == [1, 1, 1, 2, 11]
    assert steps_for_share(100, 1.0) == 100


@pytest.mark.parametrize(("trials", "steps"), [(0, 0), (2, 2 * 30), (3, 3 * 30), (6, 6 * 10 + 2 * 30)])
def test_steps_of_the_whole_search(trials: int, steps: int) -> None:
    assert ArmPlan(steps=90, step_seconds=1.0).search_steps(trials) == steps


def test_a_plan_is_measured_once_and_read_from_its_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: ImageStore
) -> None:
    timed = request(budget="60s", one={}, two={"batch_size": 8})
    calls = measured(monkeypatch, 0.5, 0.25)
    found = measure_plan(tmp_path, timed, store, smallest=20)
    expected = {"one": ArmPlan(steps=120, step_seconds=0.5), "two": ArmPlan(steps=240, step_seconds=0.25)}
    assert found == expected
    assert [call["config"].batch_size for call in calls] == [4, 8]
    assert {call["steps"] for call in calls} == {600}  # at a guess of 0.1 s, which tells whether to compile
    assert json.loads((tmp_path / "plan.json").read_text())["two"] == {
        "steps": 240, "step_seconds": 0.25, "error": None
    }  # fmt: skip
    assert measure_plan(tmp_path, timed, store, smallest=1) == expected
    assert len(calls) == 2


@pytest.mark.parametrize(
    ("budget", "limit"), [("10s", 2.0), ("1h", TRIAL_SECONDS), ("9steps", TRIAL_SECONDS), ("40images", TRIAL_SECONDS)]
)
def test_measuring_takes_a_fifth_of_a_budget_of_time_at_most(
    budget: str, limit: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: ImageStore
) -> None:
    calls = measured(monkeypatch, 1.0, 1.0)
    measure_plan(tmp_path, request(budget=budget, one={}, two={}), store, smallest=20)
    assert [call["limit"] for call in calls] == [limit, limit]


def test_an_arm_that_fails_is_planned_with_its_reason(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: ImageStore
) -> None:
    measured(monkeypatch, RuntimeError("no such thing\nas this"), 1.0)
    found = measure_plan(tmp_path, request(one=Broken(), two={}, three={"batch_size": 21}), store, smallest=20)
    assert found["one"] == ArmPlan(steps=0, step_seconds=0.0, error="RuntimeError: no such thing")
    assert found["two"] == ArmPlan(steps=6, step_seconds=1.0)
    error = found["three"].error
    assert error is not None
    assert error.startswith("DataError: a batch of 21 images was asked for and the data hold 20")
    assert measure_plan(tmp_path, request(one={}, two={}, three={}), store, smallest=20) == found


def test_what_all_arms_fail_with_is_an_error_and_leaves_no_plan(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, store: ImageStore
) -> None:
    measured(monkeypatch, ConfigError("the first"), ConfigError("the second"))
    with pytest.raises(ConfigError, match="the first"):
        measure_plan(tmp_path, request(one={}, two={}), store, smallest=20)
    with pytest.raises(DataError, match="hold 3"):
        measure_plan(tmp_path, request(one={}, two={}), store, smallest=3)
    measured(monkeypatch, OSError("the disk is full"))  # which is no failure of a method
    with pytest.raises(OSError, match="the disk is full"):
        measure_plan(tmp_path, request(one={}, two={}), store, smallest=20)
    assert list(tmp_path.iterdir()) == []


def test_cost_in_words() -> None:
    plans = {
        "one": ArmPlan(steps=90, step_seconds=2.0),
        "two": ArmPlan(steps=0, step_seconds=0.0, error="RuntimeError: no"),
        "three": ArmPlan(steps=1800, step_seconds=0.5),
    }
    arms: dict[str, Any] = {"one": {}, "two": {}, "three": {}}
    assert list(cost_lines(request(seeds=3, search=0, **arms), plans)) == [
        "one: 3 runs of 90 steps, 9.0 min",
        "two: left out, RuntimeError: no",
        "three: 3 runs of 1800 steps, 45.0 min",
        "in all about 54.0 min of training, and the time for evaluating each run",
    ]
    assert list(cost_lines(request(seeds=1, search=6, **arms), plans))[0::2] == [
        "one: 120 steps of search, 1 run of 90 steps, 7.0 min",  # 6 at a ninth, and 2 at a third
        "three: 2400 steps of search, 1 run of 1800 steps, 35.0 min",
    ]


def test_a_search_that_sees_less_than_an_epoch_is_told() -> None:
    arms: dict[str, Any] = {"small": {}, "large": {"batch_size": 400}, "failed": {}}
    plans = {name: ArmPlan(steps=90, step_seconds=1.0) for name in arms}
    plans["failed"] = ArmPlan(steps=0, step_seconds=0.0, error="RuntimeError: no")
    searched = request(search=6, **arms)
    (note,) = short_search_notes(searched, plans, images=2000)
    assert note.startswith("small: the search begins with runs of 10 steps, 40 of 2,000 images, less than one epoch.")
    assert len(list(short_search_notes(searched, plans, images=4001))) == 2
    assert list(short_search_notes(searched, plans, images=40)) == []
    assert list(short_search_notes(request(search=0, **arms), plans, images=2000)) == []


def test_a_short_run_has_a_short_warmup() -> None:
    config = tiny.config(optim__warmup_steps=100)
    short = shortened(config, 90, whole=900)
    assert (short.steps, short.optim.warmup_steps) == (90, 10)
    assert shortened(config, 900, whole=900).optim == config.optim
    assert shortened(config, 2000, whole=900).optim == config.optim
    assert dataclasses.replace(short, steps=config.steps, optim=config.optim) == config


# The search: equal draws, ranges, pinned settings, ties


def arms(*methods: str) -> tuple[Arm, ...]:
    return make_arms(methods, tiny.config(**{"optim.weight_decay": 0.01}), projector="recipe")


def test_the_last_rung_has_a_third_of_the_steps_and_a_third_of_the_trials() -> None:
    assert rungs(0) == ()
    assert rungs(3) == ((3, 1 / 3),)
    assert rungs(6) == ((6, 1 / 9), (2, 1 / 3))
    assert rungs(10) == ((10, 1 / 9), (4, 1 / 3))


def test_draws_are_equal_for_all_arms_repeat_and_cover_their_ranges() -> None:
    ssole, simclr = arms("ssole", "simclr")
    drawn = [(draw_settings(ssole, trial), draw_settings(simclr, trial)) for trial in range(1, 200)]
    assert drawn[7] == (draw_settings(ssole, 8), draw_settings(simclr, 8))
    for ours, theirs in drawn:
        assert ours["optim.lr"] == theirs["optim.lr"]
        assert ours["optim.weight_decay"] == theirs["optim.weight_decay"]
    for name, low, high in (
        ("optim.lr", 0.025, 0.4),
        ("optim.weight_decay", 0.001, 0.1),
        ("loss.high_rank_weight", *SSOLEConfig.search["high_rank_weight"]),
    ):
        values = np.array([ours[name] for ours, _ in drawn])
        assert low <= values.min() < 1.3 * low
        assert high / 1.3 < values.max() <= high
        assert abs(np.median(np.log(values)) - math.log(low * high) / 2) < 0.15 * math.log(high / low)


def test_pinned_settings_and_a_weight_decay_of_zero_are_left_alone() -> None:
    base = tiny.config(**{"optim.weight_decay": 0.0})
    pinned, free = make_arms({"a": {"loss.high_rank_weight": 2.0}, "b": {}}, base, projector="recipe")
    assert draw_settings(pinned, 3).keys() == {"optim.lr", "loss.temperature"}
    assert draw_settings(free, 3).keys() == {"optim.lr", "loss.high_rank_weight", "loss.temperature"}
    assert draw_settings(free, 0) == {}


def test_a_learning_rate_below_the_final_one_lowers_that_too() -> None:
    base = tiny.config(**{"optim.final_lr": 0.09})  # the learning rate is 0.1
    arm, other = make_arms(["ssole", "simclr"], base, projector="recipe")
    draws = [draw_settings(arm, trial) for trial in range(40)]
    low = [drawn for drawn in draws if drawn.get("optim.lr", 1) < 0.09]
    assert 5 < len(low) < 35
    for drawn in draws:
        assert ("optim.final_lr" in drawn) == (drawn in low)
        optim = apply_overrides(arm.config, drawn).optim  # which is an error for a final rate above the first
        assert optim.final_lr == min(optim.lr, 0.09)
    assert draw_settings(other, 5)["optim.lr"] == draws[5]["optim.lr"]
    pinned = make_arms({"a": {"optim.final_lr": 0.09}, "b": {}}, base, projector="recipe")[0]
    rates = [draw_settings(pinned, trial)["optim.lr"] for trial in range(1, 40)]
    assert min(rates) == 0.09
    assert not any("optim.final_lr" in draw_settings(pinned, trial) for trial in range(40))


@pytest.mark.parametrize("name", sorted(LOSS_CONFIGS))
def test_the_ends_of_every_range_are_settings_of_the_loss(name: str) -> None:
    config = LOSS_CONFIGS[name]
    assert len(config.search) <= 2
    for field, ends in config.search.items():
        assert 0 < ends[0] < ends[1]
        for value in ends:
            assert getattr(dataclasses.replace(config(), **{field: value}), field) == value


def test_the_earlier_trial_wins_a_tie() -> None:
    assert ranked({0: 0.5, 1: 0.7, 2: 0.7, 3: 0.1}) == [1, 2, 0, 3]
