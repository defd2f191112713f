"""Budget: what a run may take, as a time or as a number of steps, images or views."""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal

from ssole.errors import ConfigError

_SECONDS = {"s": 1.0, "min": 60.0, "mins": 60.0, "m": 60.0, "h": 3600.0}
_PREFIXES = {"": 1.0, "k": 1e3, "M": 1e6}


@dataclass(frozen=True, kw_only=True)
class Budget:
    """Budget of a run: an amount of time, steps, images or views."""

    amount: float
    unit: Literal["steps", "images", "views", "seconds"]

    @classmethod
    def parse(cls, text: str) -> Budget:
        """Budget of a text: 10m, 600s, 2h, 2000steps, 300kimages or 1.2Mviews; a ConfigError for anything else."""
        number = r"(\d+(?:\.\d+)?) *"
        words = text.strip() if isinstance(text, str) else ""
        if (time := re.fullmatch(rf"{number}(s|mins?|m|h)", words)) and float(time[1]) > 0:
            return cls(amount=float(time[1]) * _SECONDS[time[2]], unit="seconds")
        if (count := re.fullmatch(rf"{number}([kM]?) *(step|image|view)s?", words)) and float(count[1]) > 0:
            return cls(amount=float(count[1]) * _PREFIXES[count[2]], unit=f"{count[3]}s")  # type: ignore[arg-type]
        raise ConfigError(f"a budget is a time or a number, such as 10m, 2000steps, 300kimages, 1Mviews: got {text!r}")

    def steps(self, *, batch_size: int, views: int, step_seconds: float) -> int:
        """Steps of a run with this batch size, views of each image and time of a step."""
        one = {"steps": 1.0, "images": batch_size, "views": batch_size * views, "seconds": step_seconds}[self.unit]
        return max(1, int(self.amount / one))


def budget_seconds(text: str) -> float:
    """Seconds of a budget of time, such as 90s, 10m or 2h; a ConfigError for anything else."""
    with suppress(ConfigError):
        budget = Budget.parse(text)
        if budget.unit == "seconds":
            return budget.amount
    raise ConfigError(f"the budget of a run is a time, such as 90s, 10m or 2h, got {text!r}")
