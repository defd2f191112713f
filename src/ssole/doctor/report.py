"""Report of `ssole doctor` as plain data classes, and its JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from ssole.doctor.contents import Classes, Contents, Copies, Leak
from ssole.doctor.estimate import Estimate
from ssole.doctor.scan import ChannelStatistics, Rate, Unreadable
from ssole.doctor.suggest import Suggestion
from ssole.files import write_text_atomically

FORMAT = 1
"""Version of the JSON: raise it when a key changes its meaning or is removed."""

Level = Literal["ok", "look", "stop"]


@dataclass(frozen=True)
class Finding:
    """Verdict on one question."""

    level: Level
    """`ok`, `look` (training would work, but look first) or `stop` (it would fail, or its result would mislead)."""
    topic: str
    """One word for programs, such as ``exact_copies``."""
    text: str
    """What was found."""
    advice: str = ""
    """What to do about it."""


@dataclass(frozen=True, kw_only=True)
class SecondSet:
    """Images given with `against`, and which of them are also in the first set."""

    name: str
    images: int
    examined: int
    unreadable: list[Unreadable]
    leaked: list[Leak]


@dataclass(frozen=True, kw_only=True)
class Report:
    """Result of :func:`ssole.doctor.examine`. Parts that default to None stay None if no image can be read."""

    name: str
    images: int
    examined: int
    """Number of images read: all of them, or the limit."""
    seconds: float
    """Time for reading and comparing."""
    unreadable: list[Unreadable]
    ignored: dict[str, int]
    """Number of other files in the data set, by suffix."""
    hidden: int
    """Number of hidden files, whose names begin with a dot."""
    classes: Classes | None
    contents: Contents | None
    """None if no image can be read."""
    exact_copies: list[Copies]
    near_copies: list[Copies]
    against: SecondSet | None
    findings: list[Finding]
    statistics: ChannelStatistics | None = None
    decode: Rate | None = None
    views: Rate | None = None
    suggestion: Suggestion | None = None
    recipe: str | None = None
    """Recipe of `views` and `estimate`: the one asked for, or else the suggested one."""
    estimate: Estimate | None = None
    preview: str | None = None
    """Path of the picture of views."""

    @property
    def verdict(self) -> Level:
        """The worst level of the findings."""
        return max((finding.level for finding in self.findings), key=("ok", "look", "stop").index, default="ok")

    def to_dict(self) -> dict[str, Any]:
        """Report as plain values for JSON; docs/doctor.md describes the keys."""
        from ssole import __version__

        return {"ssole": __version__, "format": FORMAT, "verdict": self.verdict, **asdict(self)}

    def to_json(self) -> str:
        """JSON of :meth:`to_dict`. It is ASCII, even where a file name is not valid text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def save(self, path: str | PathLike[str]) -> None:
        """Write :meth:`to_json` to a file, which appears whole or not at all."""
        write_text_atomically(Path(path), self.to_json())
