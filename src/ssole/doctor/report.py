"""All that a look at the images gave, as plain values."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from ssole.doctor.contents import Classes, Contents
from ssole.doctor.estimate import Estimate
from ssole.doctor.sample import ChannelStatistics, Rate
from ssole.doctor.scan import Unreadable
from ssole.doctor.suggest import Suggestion
from ssole.files import write_text_atomically

FORMAT = 1
"""Of the JSON: raised when a key changes its meaning or goes."""

Level = Literal["ok", "look", "stop"]


@dataclass(frozen=True, kw_only=True)
class Finding:
    """A verdict on one question."""

    level: Level
    """ok; look: a run would go through, but a person should look first; stop: it would fail, or mislead."""
    topic: str
    """One word for programs, such as ``exact_copies``."""
    text: str
    """What was found."""
    advice: str = ""
    """What to do about it."""


@dataclass(frozen=True, slots=True)
class Copies:
    """Images alike, by id."""

    first: str
    copies: list[str]


@dataclass(frozen=True, slots=True)
class Leaked:
    """An image of the second set that is in the first as well, by id."""

    id: str
    twin: str
    exact: bool


@dataclass(frozen=True, kw_only=True)
class Against:
    """The second set."""

    name: str
    images: int
    examined: int
    unreadable: list[Unreadable]
    leaked: list[Leaked]


@dataclass(frozen=True, kw_only=True)
class Report:
    """What :func:`ssole.doctor.examine` found; the page of `ssole doctor` shows it."""

    name: str
    images: int
    examined: int
    """How many were looked at; all of them unless there are more than the limit."""
    seconds: float
    """That reading and comparing took."""
    unreadable: list[Unreadable]
    ignored: dict[str, int]
    """Files in the folder that are no images, by suffix."""
    classes: Classes | None
    contents: Contents | None
    """None, as are the parts that default to it, where no image can be read."""
    exact_copies: list[Copies]
    near_copies: list[Copies]
    against: Against | None
    findings: list[Finding]
    statistics: ChannelStatistics | None = None
    decode: Rate | None = None
    views: Rate | None = None
    suggestion: Suggestion | None = None
    recipe: str | None = None
    """The recipe that views and estimate are of: the one asked for, else the suggestion."""
    estimate: Estimate | None = None
    preview: str | None = None
    """Where the grid of views was written."""

    @property
    def verdict(self) -> Level:
        """The worst of the findings."""
        levels = {finding.level for finding in self.findings}
        return "stop" if "stop" in levels else "look" if "look" in levels else "ok"

    def to_dict(self) -> dict[str, Any]:
        """As JSON can hold it; docs/doctor.md describes the keys."""
        from ssole import __version__

        return {"ssole": __version__, "format": FORMAT, "verdict": self.verdict, **asdict(self)}

    def to_json(self) -> str:
        """:meth:`to_dict` as text, in ASCII, even where a file name is no valid text."""
        return json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n"

    def save(self, path: str | PathLike[str]) -> None:
        """Write :meth:`to_json`; the file appears whole or not at all."""
        write_text_atomically(Path(path), self.to_json())
