"""Budgets, arms, and the file that a comparison's folder remembers its request by."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

import tiny
from ssole.comparison.request import Budget, Request, load_request, make_arms, save_request
from ssole.config import ConfigError


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("10m", 600, "seconds"),
        ("10min", 600, "seconds"),
        ("90s", 90, "seconds"),
        ("1.5h", 5400, "seconds"),
        ("2000steps", 2000, "steps"),
        ("2000 steps", 2000, "steps"),
        ("2ksteps", 2000, "steps"),
        ("1step", 1, "steps"),
        ("300kimages", 3e5, "images"),
        ("1.2Mviews", 1.2e6, "views"),
    ],
)
def test_budgets(text: str, amount: float, unit: str) -> None:
    assert Budget.parse(text) == Budget(amount=amount, unit=unit)  # type: ignore[arg-type]


@pytest.mark.parametrize("text", ["", "10", "m", "-1m", "10 minutes of time", "2000epochs", "0s", "1e3steps"])
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="10m, 2000steps"):
        Budget.parse(text)


def test_steps_at_equal_images_views_and_time() -> None:
    config = tiny.config(batch_size=4, views=3)
    assert Budget.parse("100steps").steps(config, 0.5) == 100
    assert Budget.parse("100images").steps(config, 0.5) == 25
    assert Budget.parse("120views").steps(config, 0.5) == 10
    assert Budget.parse("10s").steps(config, 0.5) == 20
    assert Budget.parse("1view").steps(config, 0.5) == 1


def request() -> Request:
    arms = make_arms(["ssole", "vicreg"], tiny.config(), projector="recipe")
    budget = Budget.parse("9steps")
    return Request(arms=arms, data=("a", "b"), test=None, budget=budget, seeds=2, search=4)


def test_a_request_is_read_as_it_was_written(tmp_path: Path) -> None:
    save_request(tmp_path, request())
    assert load_request(tmp_path) == request()
    save_request(tmp_path, request())  # the same again


def test_all_differences_are_named(tmp_path: Path) -> None:
    save_request(tmp_path, request())
    other = make_arms(["ssole", "simclr"], tiny.config(), projector="recipe")
    with pytest.raises(ConfigError, match=r"arms.vicreg: settings before, nothing now; arms.simclr: nothing before"):
        save_request(tmp_path, dataclasses.replace(request(), arms=other))


@pytest.mark.parametrize("text", ["a: 1", "arms: 3", "arms: {}"])
def test_a_damaged_file_says_so(tmp_path: Path, text: str) -> None:
    (tmp_path / "comparison.yaml").write_text(text)
    with pytest.raises(ConfigError, match=r"comparison\.yaml is damaged .*another folder"):
        load_request(tmp_path)
