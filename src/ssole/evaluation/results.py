"""Results of an evaluation: scores, their table and their JSON."""

from __future__ import annotations

import json
import math
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssole.files import write_text_atomically

if TYPE_CHECKING:
    from rich.table import Table


@dataclass(frozen=True, kw_only=True)
class Score:
    """Value of a metric and its uncertainty."""

    value: float
    """Value of one run, or mean over several."""
    std: float | None
    """For several runs, the standard deviation between them (n - 1 in the denominator). For the accuracy of one run,
    its binomial standard error sqrt(a (1 - a) / n), which covers the choice of test images but not of the seed.
    None for a label-free metric of one run."""
    n: int
    """Number of images of the measurement."""
    runs: int = 1

    @classmethod
    def accuracy(cls, value: float, n: int) -> Score:
        """Accuracy of one run on ``n`` test images."""
        return cls(value=value, std=math.sqrt(value * (1 - value) / n), n=n)

    @classmethod
    def over_runs(cls, scores: Sequence[Score]) -> Score:
        """Mean and standard deviation of a metric over several runs; a single score is returned as it is."""
        if len(scores) == 1:
            return scores[0]
        values = [score.value for score in scores]
        return cls(value=statistics.fmean(values), std=statistics.stdev(values), n=scores[0].n, runs=len(scores))


METRICS = {
    "knn20": "kNN k=20",
    "knn10": "kNN k=10",
    "linear": "linear probe",
    "knn20_top5": "kNN k=20, top 5",
    "knn10_top5": "kNN k=10, top 5",
    "linear_top5": "linear probe, top 5",
    "centred_effective_rank": "effective rank, centred",
    "rankme": "RankMe",
    "alpha_req": "alpha-ReQ",
    "lidar": "LiDAR",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "neighbour_agreement": "agreement of neighbours",
}
"""Headings of the metrics, in the order to show them. Accuracies are shares in [0, 1], shown in per cent."""
LABEL_FREE = (
    "centred_effective_rank",
    "rankme",
    "alpha_req",
    "lidar",
    "alignment",
    "uniformity",
    "neighbour_agreement",
)


@dataclass(frozen=True, kw_only=True)
class EvaluationResult:
    """Result of an evaluation: scores by row (a model or baseline) and by metric, both in the order to show them."""

    rows: dict[str, dict[str, Score]]
    train: str
    """Name and number of the images that classifiers were fitted on."""
    test: str | None
    """Name and number of the test images; None without labels."""
    classes: int | None = None
    notes: list[str] = field(default_factory=list)
    """What a reader must know: a hold-out split, missing labels, images left out, a probe that did not converge."""
    probes: dict[str, list[dict[str, Any]]] = field(default_factory=dict)
    """Linear probes by row, a dict for each run: the chosen ``c``, ``converged``, ``iterations`` and ``validation``."""

    def table(self) -> Table:
        """Table for ``rich.print``."""
        from rich.table import Table

        where = f"test: {self.test}" if self.test is not None else f"images: {self.train}"
        table = Table(title=f"Frozen features; {where}", caption="\n".join(self.notes) or None, caption_justify="left")
        cells = self.cells()
        if len(cells[0]) > 5:  # more columns would not fit a terminal: metrics then go down the page
            cells = [list(line) for line in zip(*cells, strict=True)]
        for heading in cells[0]:
            table.add_column(heading, justify="right" if heading else "left")
        for line in cells[1:]:
            table.add_row(*line)
        return table

    def cells(self) -> list[list[str]]:
        """Table as texts: a line of headings, then a line a row. Top 5 is left out below 100 classes."""
        shown = [name for name in METRICS if any(name in row for row in self.rows.values())]
        shown = [name for name in shown if not name.endswith("_top5") or (self.classes or 0) >= 100]
        headings = ["", *(METRICS[name] for name in shown)]
        return [headings, *([row, *(_cell(n, scores.get(n)) for n in shown)] for row, scores in self.rows.items())]

    def to_dict(self) -> dict[str, Any]:
        """The result as plain dicts and lists, ready for JSON."""
        return asdict(self)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the result as JSON; the file appears whole or not at all."""
        path = Path(path)
        write_text_atomically(path, json.dumps(self.to_dict(), indent=1, allow_nan=False) + "\n")
        return path

    @classmethod
    def load(cls, path: str | PathLike[str]) -> EvaluationResult:
        """Result that :meth:`save` wrote.

        Raises:
            ValueError: the file is not such a result.
        """
        try:
            fields = json.loads(Path(path).read_text(encoding="utf-8"))
            rows = {
                row: {name: Score(**score) for name, score in scores.items()} for row, scores in fields["rows"].items()
            }
            return cls(**{**fields, "rows": rows})
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not a result of ssole eval ({error!r}): run ssole eval again") from None


def _cell(name: str, score: Score | None) -> str:
    if score is None:
        return "-"
    if name in LABEL_FREE:
        digits = 1 if name in ("centred_effective_rank", "rankme", "lidar") else 3
        return f"{score.value:.{digits}f}" + (f" ± {score.std:.{digits}f}" if score.std is not None else "")
    return f"{100 * score.value:.1f} %" + (f" ± {100 * score.std:.1f}" if score.std is not None else "")
