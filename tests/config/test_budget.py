"""Budgets: what they are written as, and the steps that they come to."""

from __future__ import annotations

import pytest

from ssole.config import ConfigError, PretrainConfig
from ssole.config.budget import Budget, budget_seconds


@pytest.mark.parametrize(
    ("text", "amount", "unit"),
    [
        ("10m", 600, "seconds"),
        ("10min", 600, "seconds"),
        ("10 mins", 600, "seconds"),
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


@pytest.mark.parametrize(
    "text", ["", "10", "m", "-1m", "10 minutes of time", "2000epochs", "0s", "1e3steps", "5Mm", "300ks", "500ms"]
)
def test_other_budgets_are_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="10m, 2000steps"):
        Budget.parse(text)


def test_steps_at_equal_images_views_and_time() -> None:
    def steps(text: str) -> int:
        return Budget.parse(text).steps(batch_size=4, views=3, step_seconds=0.5)

    assert steps("100steps") == 100
    assert steps("100images") == 25
    assert steps("120views") == 10
    assert steps("10s") == 20
    assert steps("1view") == 1


def test_the_budget_of_a_run_is_a_time() -> None:
    assert [budget_seconds(text) for text in ("90s", "10m", "2h", "1.5h")] == [90, 600, 7200, 5400]
    assert PretrainConfig(budget="2h").budget == "2h"
    with pytest.raises(ConfigError, match="is a time, such as 90s, 10m or 2h, got '2000steps'"):
        PretrainConfig(budget="2000steps")
    with pytest.raises(ConfigError, match="got 'soon'"):
        PretrainConfig(budget="soon")
