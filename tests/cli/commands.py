"""Outcome of a command, and the arguments of the smallest run."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple


class Outcome(NamedTuple):
    """Exit code of a command, and the text it wrote to standard output and standard error."""

    code: int
    out: str
    err: str


Command = Callable[..., Outcome]

TINY = ("pretrain", "--recipe", "tiny.yaml", "--data", "photos")
