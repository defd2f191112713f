"""Scoring of models and baselines: all protocols for one row of the result."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import nn

from ssole.evaluation.case import Case
from ssole.evaluation.datasets import EvaluationData
from ssole.evaluation.features import Views, adapted_views
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.protocols import PROTOCOLS, chosen_protocols
from ssole.evaluation.results import METRICS, EvaluationResult, Outcome, Score
from ssole.runtime import Precision

T = TypeVar("T")


@dataclass
class Scoring:
    """Collector of an evaluation's scores, row by row, with their notes and details."""

    open_data: Callable[[Preprocessing], EvaluationData]
    protocol: str | Sequence[str]
    views: Views | None
    """Function that makes views for the first model."""
    seed: int
    device: torch.device
    precision: Precision
    progress: bool

    def __post_init__(self) -> None:
        self._protocols = chosen_protocols(self.protocol)
        self._opened: list[EvaluationData] = []
        self._rows: dict[str, dict[str, Score]] = {}
        self._details: dict[str, dict[str, list[Any]]] = {}
        self.notes: list[str] = []
        """What a reader of the result must know; each is shown once."""
        self._first: Preprocessing | None = None

    def add_models(self, row: str, models: Sequence[tuple[nn.Module | None, Preprocessing]]) -> None:
        """Add the scores of one model, or means over several; without a model, those of raw pixels."""
        channels = {preprocessing.channels for _, preprocessing in models}
        if len(channels) > 1:
            kinds = ["RGB" if one is None else f"{one} channels" for one in sorted(channels, key=lambda one: one or 0)]
            raise ValueError(f"the models take different images: {', '.join(kinds)}; evaluate them separately")
        outcomes = [self._measured(row, model, preprocessing) for model, preprocessing in models]
        scores = _in_all([one.scores for one in outcomes])
        self._rows[row] = {name: Score.over_runs(found) for name, found in scores.items()}
        self._details[row] = _in_all([one.details for one in outcomes])
        for name in dict.fromkeys(name for one in outcomes for name in one.scores if name not in scores):
            self.notes.append(f"{row}: no {METRICS[name]}, which some of the runs do not have.")

    def result(self) -> EvaluationResult:
        """Result of all rows so far."""
        data = self._opened[0]
        return EvaluationResult(
            rows=self._rows,
            train=str(data.train),
            test=None if data.test is None else str(data.test),
            classes=data.classes,
            notes=list(dict.fromkeys(self.notes)),
            protocols={name: PROTOCOLS[name].version for name in self._able(data)},
            details=self._details,
        )

    def _measured(self, row: str, model: nn.Module | None, preprocessing: Preprocessing) -> Outcome:
        """Figures of all protocols for one model or baseline."""
        data = self._data(preprocessing)
        self._first = self._first or preprocessing
        views = None
        if self.views is not None and preprocessing.channels == self._first.channels:
            views = adapted_views(self.views, self._first, preprocessing)
        elif self.views is not None:
            self.notes.append(f"{row}: no figures of views, which are made of other channels for the first model.")
        case = Case(
            row=row,
            data=data,
            preprocessing=preprocessing,
            model=model,
            views=views,
            seed=self.seed,
            device=self.device,
            precision=self.precision,
            progress=self.progress,
        )
        outcome = Outcome.joined([PROTOCOLS[name].measure(case) for name in self._able(data)])
        self.notes += case.notes
        return outcome

    def _able(self, data: EvaluationData) -> tuple[str, ...]:
        """The protocols that the data allow: without labels, the label-free figures."""
        return self._protocols if data.test is not None else ("label-free",)

    def free_name(self, name: str) -> str:
        """Name for the row of a baseline, which no other row has."""
        return name if name not in self._rows else self.free_name(f"{name} (baseline)")

    def _data(self, preprocessing: Preprocessing) -> EvaluationData:
        """Data decoded for a preprocessing; opened once for all models whose preprocessing they suit."""
        for data in self._opened:
            if all(preprocessing.suits(subset.store) for subset in (data.train, data.test) if subset is not None):
                return data
        self._opened.append(self.open_data(preprocessing))
        self.notes += self._opened[-1].notes
        return self._opened[-1]


def _in_all(mappings: Sequence[Mapping[str, T]]) -> dict[str, list[T]]:
    """Values of several mappings, by the names that all of them have."""
    return {name: [one[name] for one in mappings] for name in mappings[0] if all(name in one for one in mappings)}
