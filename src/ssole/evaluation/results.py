"""Results of an evaluation: scores, their table and their JSON."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import chain
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssole.errors import printable
from ssole.files import write_text_atomically
from ssole.progress import as_text

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
    interval: float | None = None
    """Half of the 95 % interval of the value, where it is a mean over repeats of one run (then ``std`` is theirs)."""

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


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """Figures of one run: scores by metric, and details beside them."""

    scores: dict[str, Score] = field(default_factory=dict)
    details: dict[str, Any] = field(default_factory=dict)
    """By metric, ready for JSON."""

    @classmethod
    def of(cls, figures: Mapping[str, float], n: int) -> Outcome:
        """Outcome of figures of ``n`` images whose uncertainty is unknown."""
        return cls(scores={name: Score(value=value, std=None, n=n) for name, value in figures.items()})

    @classmethod
    def joined(cls, outcomes: Sequence[Outcome]) -> Outcome:
        """All scores and details of several outcomes."""
        joined = cls()
        for one in outcomes:
            joined.scores.update(one.scores)
            joined.details.update(one.details)
        return joined


_CLASSIFIERS = {
    "knn20": "kNN k=20",
    "knn10": "kNN k=10",
    "knn200": "kNN k=200",
    "linear": "linear probe",
    "sgd": "linear, by SGD",
    "attentive": "attentive probe",
    "semi1": "fine-tuned on 1 %",
    "semi10": "fine-tuned on 10 %",
}
_LABEL_FREE = {
    "centred_effective_rank": "effective rank, centred",
    "rankme": "RankMe",
    "alpha_req": "alpha-ReQ",
    "lidar": "LiDAR",
    "alignment": "alignment",
    "uniformity": "uniformity",
    "neighbour_agreement": "agreement of neighbours",
}
LABEL_FREE = tuple(_LABEL_FREE)
METRICS = {
    **_CLASSIFIERS,
    "few_shot1": "1-shot",
    "few_shot5": "5-shot",
    "few_shot10": "10-shot",
    "cluster_accuracy": "clusters, accuracy",
    "cluster_nmi": "clusters, NMI",
    "cluster_ari": "clusters, ARI",
    "retrieval_map": "retrieval, mAP",
    "recall1": "recall at 1",
    "recall5": "recall at 5",
    "recall10": "recall at 10",
    "robustness": "corrupted images",
    "robustness_kept": "corrupted, of clean",
    **{f"{name}_macro": f"{heading}, mean of classes" for name, heading in _CLASSIFIERS.items()},
    **{f"{name}_top5": f"{heading}, top 5" for name, heading in _CLASSIFIERS.items()},
    **_LABEL_FREE,
}
"""Headings of the metrics, in the order to show them. All but those in `DECIMALS` are shares, shown in per cent."""
DECIMALS = {
    "centred_effective_rank": 1,
    "rankme": 1,
    "lidar": 1,
    "alpha_req": 2,
    "alignment": 3,
    "uniformity": 3,
    "cluster_nmi": 3,
    "cluster_ari": 3,
}
"""Decimal places of the metrics that are no shares, and are shown as they are."""


@dataclass(frozen=True, kw_only=True, repr=False)
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
    protocols: dict[str, int] = field(default_factory=dict)
    """Versions of the protocols."""
    details: dict[str, dict[str, list[Any]]] = field(default_factory=dict)
    """By row and metric, an entry for each run. Of a classifier: accuracy ``per_class`` (null without test images) and
    ``confusion`` (rows are true classes; none for more than 1,000); of the linear probe also the chosen ``c``,
    ``converged``, ``iterations`` and ``validation``. Of few-shot accuracy: its ``episodes``. Of RankMe: the number of
    ``features``, for the verdict. Of fine-tuning: the number of ``images`` and the SHA-256 of their ``split``. Of
    robustness: accuracy by corruption and strength."""

    def __repr__(self) -> str:
        return as_text(self.table())

    def table(self) -> Table:
        """Table for ``rich.print``."""
        from rich.markup import escape
        from rich.table import Table

        def plain(text: str) -> str:  # names of data, rows and files may hold what rich takes for markup
            return escape(printable(text))

        where = f"test: {self.test}" if self.test is not None else f"images: {self.train}"
        notes = plain("\n".join(self.notes)) or None
        table = Table(title=plain(f"Frozen features; {where}"), caption=notes, caption_justify="left")
        cells = [[plain(cell) for cell in line] for line in self.cells()]
        if len(cells[0]) > 5:  # more columns would not fit a terminal: metrics then go down the page
            cells = [list(line) for line in zip(*cells, strict=True)]
        for heading in cells[0]:
            table.add_column(heading, justify="right" if heading else "left")
        for line in cells[1:]:
            table.add_row(*line)
        return table

    def cells(self) -> list[list[str]]:
        """Table as texts: a line of headings, then a line a row.

        Top 5 is left out below 100 classes, and the mean over classes where it is the accuracy within a point.
        """
        shown = [name for name in METRICS if any(name in row for row in self.rows.values()) and self._is_shown(name)]
        others = dict.fromkeys(name for row in self.rows.values() for name in row if name not in METRICS)
        shown += others  # such as the data sets of a transfer, which name themselves
        headings = ["", *(METRICS.get(name, name) for name in shown)]
        return [headings, *([row, *(_cell(n, scores.get(n)) for n in shown)] for row, scores in self.rows.items())]

    def _is_shown(self, name: str) -> bool:
        if name.endswith("_macro"):
            pairs = [(row[name], row[name.removesuffix("_macro")]) for row in self.rows.values() if name in row]
            return any(abs(macro.value - plain.value) > 0.01 for macro, plain in pairs)
        return not name.endswith("_top5") or (self.classes or 0) >= 100

    def to_dict(self) -> dict[str, Any]:
        """The result as plain dicts and lists, ready for JSON."""
        return asdict(self)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write the result as JSON; the file appears whole or not at all."""
        path = Path(path)
        text = json.dumps(self.to_dict(), indent=1, allow_nan=False)
        # each list of numbers, such as a row of a confusion matrix, on one line; a string has no line breaks
        text = re.sub(r'\[\n[^\[\]{}"]+\]', lambda numbers: " ".join(numbers[0].split()), text)
        write_text_atomically(path, text + "\n")
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
            for details in chain.from_iterable(row.values() for row in fields["details"].values()):
                for one in details:
                    if "validation" in one:  # JSON has texts for the numbers that are its names
                        one["validation"] = {float(name): value for name, value in one["validation"].items()}
            return cls(**{**fields, "rows": rows})
        except (TypeError, KeyError, AttributeError, ValueError) as error:
            raise ValueError(f"{path} is not a result of ssole eval ({error!r:.100}): run ssole eval again") from None


def _cell(name: str, score: Score | None) -> str:
    if score is None:
        return "-"
    spread = score.interval if score.interval is not None else score.std
    if name in DECIMALS:
        digits = DECIMALS[name]
        return f"{score.value:.{digits}f}" + (f" ± {spread:.{digits}f}" if spread is not None else "")
    return f"{100 * score.value:.1f} %" + (f" ± {100 * spread:.1f}" if spread is not None else "")
