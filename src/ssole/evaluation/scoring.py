"""Scoring of models and baselines: all metrics of one row of the result."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from ssole.evaluation.datasets import EvaluationData, Subset
from ssole.evaluation.features import RAW_PIXEL_SIZE, Views, extract, extract_views, raw_pixels
from ssole.evaluation.knn import accuracy, knn_classify
from ssole.evaluation.label_free import label_free_figures
from ssole.evaluation.linear import C_GRID, linear_probe
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.results import EvaluationResult, Score

Protocol = Literal["knn", "linear", "label_free"]
PROTOCOLS: tuple[Protocol, ...] = ("knn", "linear", "label_free")
NEIGHBOURS = (20, 10)
VIEWED_IMAGES = 2000
"""Largest number of images for the figures of views."""


class Scoring:
    """Collector of an evaluation's scores, row by row, with their notes and probes.

    ``open_data`` opens the data for a preprocessing; ``how`` holds device, precision and progress for :func:`extract`.
    """

    def __init__(
        self,
        open_data: Callable[[Preprocessing], EvaluationData],
        protocol: Protocol | Sequence[Protocol],
        views: Views | None,
        seed: int,
        how: dict[str, Any],
    ) -> None:
        protocols: tuple[Protocol, ...] = (protocol,) if isinstance(protocol, str) else tuple(protocol)
        if not protocols or not set(protocols) <= set(PROTOCOLS):
            raise ValueError(f"protocol is {protocol!r}; choose from {PROTOCOLS}")
        self._open_data, self._protocols, self._views, self._seed, self._how = open_data, protocols, views, seed, how
        self._opened: list[EvaluationData] = []
        self._rows: dict[str, dict[str, Score]] = {}
        self._notes: list[str] = []
        self._probes: dict[str, list[dict[str, Any]]] = {}

    def add_models(self, row: str, models: Sequence[tuple[nn.Module, Preprocessing]]) -> None:
        """Add the scores of one model, or means over several."""
        channels = {preprocessing.channels for _, preprocessing in models}
        if len(channels) > 1:
            raise ValueError(
                f"the models take images of different channels: {sorted(map(str, channels))}; evaluate them separately"
            )
        runs = []
        for model, preprocessing in models:
            data = self._data(preprocessing)
            features_of = partial(extract, model, preprocessing=preprocessing, **self._how)
            runs.append(self._scores(row, data, features_of, partial(self._features_of_views, model)))
        self._rows[row] = {name: Score.over_runs([run[name] for run in runs]) for name in runs[0]}

    def add_raw_pixels(self, preprocessing: Preprocessing) -> None:
        """Add the scores of raw pixels."""
        side = min(preprocessing.image_size, RAW_PIXEL_SIZE)
        row = f"raw pixels ({side}x{side})"
        features_of = partial(raw_pixels, preprocessing=preprocessing)
        self._rows[row] = self._scores(row, self._data(preprocessing), features_of)

    def add_untrained(self, models: Sequence[tuple[nn.Module, Preprocessing]]) -> None:
        """Add the scores of untrained models, or a note when there are none."""
        if models:
            self.add_models("untrained", models)
        else:
            self._note("No untrained row: the initial weights of a module are unknown; give its run.")

    def result(self) -> EvaluationResult:
        """Result of all rows so far."""
        data = self._opened[0]
        return EvaluationResult(
            rows=self._rows,
            train=str(data.train),
            test=None if data.test is None else str(data.test),
            classes=data.classes,
            notes=self._notes,
            probes=self._probes,
        )

    def _data(self, preprocessing: Preprocessing) -> EvaluationData:
        """Data decoded for a preprocessing; opened once for all models whose preprocessing they suit."""
        for data in self._opened:
            if all(preprocessing.suits(subset.store) for subset in (data.train, data.test) if subset is not None):
                return data
        self._opened.append(self._open_data(preprocessing))
        for note in self._opened[-1].notes:
            self._note(note)
        return self._opened[-1]

    def _features_of_views(self, model: nn.Module, subset: Subset) -> Tensor | None:
        """Features (N, V, F) of views of some images, evenly spaced over the subset; None without a view function."""
        if self._views is None:
            return None
        sample = subset.select(torch.linspace(0, len(subset) - 1, min(len(subset), VIEWED_IMAGES)).long())
        return extract_views(model, sample, sample.positions, self._views, device=self._how["device"])

    def _scores(
        self,
        row: str,
        data: EvaluationData,
        features_of: Callable[[Subset], Tensor],
        features_of_views: Callable[[Subset], Tensor | None] = lambda subset: None,
    ) -> dict[str, Score]:
        """Scores of the features that a function extracts; without labels, the label-free metrics."""
        protocols = self._protocols if data.test is not None else ("label_free",)
        train, train_labels = self._features(data.train, features_of)
        scores: dict[str, Score] = {}
        if data.test is not None and {"knn", "linear"} & set(protocols):
            test, test_labels = self._features(data.test, features_of)
            if bool((train == train[0]).all()):
                self._note(f"{row}: all features are equal; the representation has collapsed.")
            scores |= self._accuracies(row, data.classes, train, train_labels, test, test_labels)
        if "label_free" in protocols:
            figures = label_free_figures(train, features_of_views(data.train))
            scores |= {name: Score(value=value, std=None, n=len(train)) for name, value in figures.items()}
        return scores

    def _features(self, subset: Subset, features_of: Callable[[Subset], Tensor]) -> tuple[Tensor, Tensor]:
        features, labels = subset.readable_rows(features_of(subset))
        if len(features) < len(subset):
            unread = len(subset) - len(features)
            self._note(f"{unread} images of {subset.store.source.name} cannot be read: left out.")
        return features.to(self._how["device"]), labels

    def _accuracies(
        self, row: str, classes: int | None, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
    ) -> dict[str, Score]:
        by_name: dict[str, Tensor] = {}
        if "knn" in self._protocols:
            votes = knn_classify(train, train_labels, test, k=NEIGHBOURS, num_classes=classes)
            by_name |= {f"knn{k}": scores for k, scores in votes.items()}
        if "linear" in self._protocols:
            probe = linear_probe(train, train_labels, num_classes=classes, seed=self._seed)
            by_name["linear"] = probe.scores(test)
            if not probe.converged:
                self._note(f"{row}: the linear probe did not converge; its accuracy may be too low.")
            if probe.c in (C_GRID[0], C_GRID[-1]):
                self._note(f"{row}: the linear probe chose C = {probe.c:g}, an end of the range tried.")
            facts = {key: getattr(probe, key) for key in ("c", "converged", "iterations", "validation")}
            self._probes.setdefault(row, []).append(facts)
        scores = {}
        for name, votes_QC in by_name.items():
            scores[name] = Score.accuracy(accuracy(votes_QC, test_labels), len(test_labels))
            if classes is not None and classes > 5:
                scores[f"{name}_top5"] = Score.accuracy(accuracy(votes_QC, test_labels, top=5), len(test_labels))
        return scores

    def _note(self, note: str) -> None:
        if note not in self._notes:
            self._notes.append(note)
