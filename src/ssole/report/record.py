"""Record of a run: the contents of its folder, without its images."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ssole.config import PretrainConfig
from ssole.errors import distinct, quoted
from ssole.evaluation.results import EvaluationResult
from ssole.files import read_json
from ssole.losses.base import RESERVED
from ssole.progress import duration
from ssole.training.run import Run

Series = tuple[list[int], list[float]]
"""Steps and values."""

WATTS = {"GPU": 350.0, "CPU": 65.0}
"""Power that a machine is assumed to draw, for the estimate of energy: nothing measures it."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """Contents of a run folder."""

    path: Path
    name: str
    config: PretrainConfig
    environment: dict[str, Any]
    metrics: list[dict[str, Any]]
    evaluation: EvaluationResult | None
    unreadable: list[dict[str, Any]]
    finished: bool
    images: dict[str, Any] | None
    """Number and hash of the training images."""

    @classmethod
    def read(cls, path: Path) -> Record:
        """Record of a run folder.

        Raises:
            ConfigError: not a run folder, or one of its files is damaged; the message names it.
            ValueError: evaluation.json is damaged.
        """
        run = Run(path)
        evaluation, images = path / "evaluation.json", path / "images.json"
        return cls(
            path=path,
            config=run.config,  # first: its error names what is wrong with the folder
            name=path.resolve().name,
            environment=run.environment if (path / "environment.json").is_file() else {},
            metrics=run.metrics,
            evaluation=EvaluationResult.load(evaluation) if evaluation.is_file() else None,
            unreadable=run.unreadable,
            finished=run.finished,
            images=read_json(images) if images.is_file() else None,
        )

    def series(self, key: str) -> Series:
        """A figure of metrics.jsonl over the steps; empty if it was never logged."""
        rows = [row for row in self.metrics if isinstance(row.get(key), (int, float))]
        return [row["step"] for row in rows], [float(row[key]) for row in rows]

    @property
    def terms(self) -> list[str]:
        """Names of the loss and of its terms, in the order logged; means of nuclear norms are on another scale."""
        row = next((row for row in self.metrics if "loss" in row), {})
        return [key for key in row if key not in RESERVED and not key.startswith("mean_")]

    @property
    def evaluated(self) -> list[str]:
        """Names of the figures that evaluators wrote while training, such as `knn20`."""
        keys = {key for row in self.metrics if not {"loss", "guardian"} & row.keys() for key in row}
        return sorted(keys - RESERVED)

    @property
    def steps(self) -> int:
        """Steps trained so far."""
        return max((row["step"] for row in self.metrics), default=0)

    def cost(self) -> dict[str, str]:
        """Cost of training: time, images, speed, and the energy it may have needed."""
        seconds = max(self.series("seconds")[1], default=0.0)
        images = self.steps * self.config.batch_size
        kind = "GPU" if self.environment.get("cuda") and self.config.device != "cpu" else "CPU"
        watts, unknown = WATTS[kind], "not recorded"
        energy = f"{float(f'{watts * seconds / 3600:.2g}'):,.10g} Wh"  # two digits
        energy += f", if the machine draws {watts:.0f} W (a {kind} at work)"
        waits = self.series("data_wait")[1]
        return {
            "time": duration(seconds) if seconds else unknown,
            "steps": f"{self.steps:,} of {self.config.batch_size:,} images",
            "images seen": f"{images:,}, as {images * self.config.augment.views:,} views",
            "speed": f"{images / seconds:,.0f} images/s" if seconds else unknown,
            "waiting for data": f"{100 * waits[-1]:.0f} % of the time" if waits else unknown,
            "energy, estimated": energy if seconds else unknown,
        }

    def command(self) -> str:
        """Command line of the run; for one that was started from Python, a command line with its settings."""
        words = self.environment.get("command")
        plain = isinstance(words, list) and all(isinstance(word, str) for word in words)  # the file may be untrusted
        if plain and words and Path(words[0]).name == "ssole":
            return " ".join(["ssole", *map(quoted, words[1:])])
        return f"ssole pretrain --recipe {quoted(self.path / 'config.yaml')}"


def unique_names(records: Sequence[Record]) -> list[Record]:
    """Records with names that differ: folders of one name have their path, and a run given again has a number."""
    names = distinct([record.name for record in records], [str(record.path) for record in records])
    times = [names[: number + 1].count(name) for number, name in enumerate(names)]
    return [
        replace(record, name=f"{name} ({n})" if n > 1 else name)
        for record, name, n in zip(records, names, times, strict=True)
    ]
