"""The search: rungs, equal draws, ranges, pinned settings, ties."""

from __future__ import annotations

import dataclasses
import math

import numpy as np
import pytest

import tiny
from ssole.comparison.request import Arm, make_arms
from ssole.comparison.search import draw_settings, ranked, rungs
from ssole.config import LOSS_CONFIGS, SSOLEConfig, apply_overrides


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
