"""Checks of settings."""

from __future__ import annotations

import math

from ssole.errors import ConfigError


def check(ok: bool, message: str) -> None:
    """Raise a ConfigError with the message unless `ok`."""
    if not ok:
        raise ConfigError(message)


def check_non_negative(name: str, value: float) -> None:
    """Raise a ConfigError unless a setting is at least 0 and finite."""
    check(0 <= value < math.inf, f"{name} must be at least 0 and finite, got {value}")


def check_positive(name: str, value: float) -> None:
    """Raise a ConfigError unless a setting is above 0 and finite."""
    check(0 < value < math.inf, f"{name} must be above 0 and finite, got {value}")
