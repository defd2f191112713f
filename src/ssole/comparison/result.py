"""Comparison: the result, arm by arm, with paired differences; as plain values for `comparison.json`."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssole.comparison.trial import RANKED_BY, Trial
from ssole.errors import printable
from ssole.evaluation.results import METRICS
from ssole.files import write_json_atomically
from ssole.progress import as_text, data_size

if TYPE_CHECKING:
    from rich.table import Table

RESULT_FILE = "comparison.json"
ALPHA = 0.05
"""Level of significance: a difference with a lower p-value is clear."""
_HEADINGS = {"knn20": "kNN, %", "linear": "linear, %", "centred_effective_rank": "rank"}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Mean of a figure over the runs of an arm."""

    mean: float
    std: float | None
    """Standard deviation between runs (n - 1 in the denominator); None for one run."""
    n: int

    @classmethod
    def of(cls, values: Sequence[float]) -> Summary:
        """Summary of at least one value."""
        std = statistics.stdev(values) if len(values) > 1 else None
        return cls(mean=statistics.fmean(values), std=std, n=len(values))


@dataclass(frozen=True, kw_only=True)
class Difference:
    """Paired difference to the best arm, run by run of the same seed: the best one's figure minus this arm's."""

    best: str
    mean: float
    standard_error: float | None
    """Standard deviation of the differences over the square root of their number; None for one pair."""
    n: int

    @property
    def p_value(self) -> float | None:
        """Two-sided p-value of Student's t-test of the pairs; None for one pair, or if no run differs from its pair."""
        from scipy.stats import t  # here, because scipy would make `import ssole` slower

        if self.standard_error is None or self.mean == self.standard_error == 0:
            return None
        return float(2 * t.sf(abs(self.mean) / self.standard_error, self.n - 1)) if self.standard_error else 0.0

    @property
    def clear(self) -> bool:
        """Whether p is below 5 %. With three pairs the mean then exceeds 4.3 times its standard error."""
        p = self.p_value
        return p is not None and p < ALPHA

    def to_dict(self) -> dict[str, Any]:
        """The figures as a plain dict, ready for JSON."""
        return asdict(self) | {"p_value": self.p_value, "clear": self.clear}

    def __str__(self) -> str:
        if self.standard_error is None:
            return f"{100 * self.mean:.1f}, one pair"
        return f"{100 * self.mean:.1f}±{100 * self.standard_error:.1f}" + ("" if self.clear else ", unclear")


@dataclass(frozen=True, kw_only=True)
class SearchTrial:
    """A run of the search, scored on the validation images."""

    trial: int
    steps: int
    settings: dict[str, Any]
    score: float | None
    """kNN accuracy, k = 20; None if it failed."""
    error: str | None = None


@dataclass(frozen=True, kw_only=True)
class ArmResult:
    """Result of an arm, as far as its runs have finished."""

    steps: int
    """Steps of each run of the result."""
    chosen: dict[str, Any] = field(default_factory=dict)
    """Settings that the search chose instead of the arm's own; none if its own were best."""
    search: list[SearchTrial] = field(default_factory=list)
    runs: list[Trial] = field(default_factory=list)
    """Finished runs of the result, by seed."""
    error: str | None = None
    """Why the arm has no result; None if it has one, or may get one."""

    def summary(self) -> dict[str, Summary]:
        """Means by name: scores, `images_per_second` and `peak_memory`."""
        good = [run for run in self.runs if run.error is None]
        figures = {name: [run.scores[name] for run in good if name in run.scores] for name in METRICS}
        figures["images_per_second"] = [run.images_per_second for run in good if run.images_per_second is not None]
        figures["peak_memory"] = [float(run.peak_memory) for run in good if run.peak_memory is not None]
        return {name: Summary.of(values) for name, values in figures.items() if values}

    @property
    def reason(self) -> str | None:
        """Reason why the arm has no result, or the error of its first run that failed."""
        return self.error or next((run.error for run in self.runs if run.error is not None), None)

    @property
    def mean_score(self) -> float | None:
        """Mean over runs of the figure that arms are ranked by; None without runs, or if one failed."""
        whole = self.runs if self.reason is None else []
        return statistics.fmean(run.scores[RANKED_BY] for run in whole) if whole else None


@dataclass(frozen=True, kw_only=True, repr=False)
class Comparison:
    """Result of a comparison."""

    path: Path
    """Folder with `comparison.json`, the plots, and the run folder of each trial."""
    arms: dict[str, ArmResult]
    request: dict[str, Any]
    environment: dict[str, Any]
    data: dict[str, str]
    """Names and numbers of the images: `train`, `test`, `search_train`, `validation`."""
    notes: list[str] = field(default_factory=list)
    """What a reader must know: a hold-out split, a search of less than one epoch, missing plots."""

    def __repr__(self) -> str:
        return as_text(self.table())

    @property
    def best(self) -> str | None:
        """Arm with the highest mean accuracy (kNN, k = 20) among those whose runs all finished; None without one."""
        means = {name: arm.mean_score for name, arm in self.arms.items() if arm.mean_score is not None}
        return max(means, key=lambda name: means[name]) if means else None

    def difference(self, name: str) -> Difference | None:
        """Paired difference of the best arm to another; None for the best arm, and without common seeds."""
        best = self.best
        if best is None or name == best:
            return None
        others = {run.seed: run.scores[RANKED_BY] for run in self.arms[name].runs if run.error is None}
        pairs = [run.scores[RANKED_BY] - others[run.seed] for run in self.arms[best].runs if run.seed in others]
        if not pairs:
            return None
        error = statistics.stdev(pairs) / math.sqrt(len(pairs)) if len(pairs) > 1 else None
        return Difference(best=best, mean=statistics.fmean(pairs), standard_error=error, n=len(pairs))

    def table(self) -> Table:
        """Table for ``rich.print``: an arm a row, best first and those that failed last; their reasons stand below."""
        from rich.table import Table
        from rich.text import Text

        seeds = self.request["seeds"]
        title = f"{self.data['test']}; {seeds} {'run' if seeds == 1 else 'runs'} of each, mean ± std"
        failures = [f"{name} failed: {arm.reason}" for name, arm in self.arms.items() if arm.reason is not None]
        caption = Text(printable("\n".join([*self.notes, *failures])))
        shown = Table(title=Text(printable(title)), caption=caption, caption_justify="left")
        shown.add_column("")
        for heading in (*_HEADINGS.values(), "images/s", "memory", "behind best"):
            shown.add_column(heading, justify="right")
        scores = {name: arm.mean_score for name, arm in self.arms.items()}
        for name in sorted(scores, key=lambda name: (scores[name] is None, -(scores[name] or 0))):
            summary, difference = self.arms[name].summary(), self.difference(name)
            cells = [_score(metric, summary.get(metric)) for metric in _HEADINGS]
            rate, memory = summary.get("images_per_second"), summary.get("peak_memory")
            cells += ["-" if rate is None else f"{rate.mean:,.0f}", "-" if memory is None else data_size(memory.mean)]
            behind = "best" if name == self.best else "-"
            shown.add_row(Text(name), *cells, behind if difference is None else str(difference))
        return shown

    def to_dict(self) -> dict[str, Any]:
        """The result as plain dicts and lists, ready for JSON."""
        arms = {}
        for name, arm in self.arms.items():
            difference = self.difference(name)
            arms[name] = {
                "summary": {key: asdict(value) for key, value in arm.summary().items()},
                "difference_to_best": None if difference is None else difference.to_dict(),
                **asdict(arm),
            }
        return {
            "format": 1,
            "best": self.best,
            "ranked_by": RANKED_BY,
            "notes": self.notes,
            "data": self.data,
            "environment": self.environment,
            "arms": arms,
            "request": self.request,
        }

    def save(self) -> Path:
        """Write `comparison.json`; the file appears whole or not at all."""
        path = self.path / RESULT_FILE
        write_json_atomically(path, self.to_dict())
        return path


def _score(metric: str, summary: Summary | None) -> str:
    if summary is None:
        return "-"
    scale, digits = (1, 0) if "rank" in metric else (100, 1)
    spread = "" if summary.std is None else f"±{scale * summary.std:.{digits}f}"
    return f"{scale * summary.mean:.{digits}f}{spread}"
