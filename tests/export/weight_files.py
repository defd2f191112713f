"""Type of the fixture `weights`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

Weights = Callable[..., Path]
