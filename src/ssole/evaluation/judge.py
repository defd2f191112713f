"""One row of the result after another: features, then every figure that was asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from ssole.evaluation.datasets import Judged, Part
from ssole.evaluation.features import frozen, raw_pixels
from ssole.evaluation.knn import accuracy, knn_classify
from ssole.evaluation.label_free import alignment, effective_rank, rankme, uniformity
from ssole.evaluation.linear import C_GRID, linear_probe
from ssole.evaluation.results import Score
from ssole.evaluation.subject import Subject

Protocol = Literal["knn", "linear", "label_free"]
PROTOCOLS: tuple[Protocol, ...] = ("knn", "linear", "label_free")
NEIGHBOURS = (20, 10)
VIEWED = 10_000
"""Images whose views are compared at most."""
Views = Callable[[Tensor | list[Tensor], Tensor], Sequence[Tensor]]
"""(uint8 images, their indices) -> for each crop group, (B, V, C, S, S) float32 for the model, V >= 2 in the first.
Such as ``functools.partial(ssole.make_views, recipe=..., seed=0, epoch=0)``."""


class Judge:
    """Applies the protocols to one row after another, and collects what there is to say about them."""

    def __init__(
        self, judged: Judged, protocol: Sequence[Protocol], views: Views | None, seed: int, device: torch.device
    ) -> None:
        self.judged, self.protocol, self.views, self.seed, self.device = judged, protocol, views, seed, device
        self.notes = list(judged.notes)
        self.probes: dict[str, list[dict[str, Any]]] = {}

    def models(self, row: str, subjects: Sequence[Subject]) -> dict[str, Score]:
        return _over_runs([self._row(row, subject.features, subject) for subject in subjects])

    def pixels(self, row: str, side: int, mean: Sequence[float], std: Sequence[float]) -> dict[str, Score]:
        return self._row(row, lambda part: raw_pixels(part, side, mean=mean, std=std), None)

    def _row(self, row: str, features_of: Callable[[Part], Tensor], subject: Subject | None) -> dict[str, Score]:
        train, train_labels = self._features(self.judged.train, features_of)
        scores: dict[str, Score] = {}
        if self.judged.test is not None and {"knn", "linear"} & set(self.protocol):
            test, test_labels = self._features(self.judged.test, features_of)
            assert train_labels is not None
            assert test_labels is not None
            if bool((train == train[0]).all()):
                self.notes.append(f"{row}: all features are equal; the representation has collapsed.")
            scores |= self._accuracies(row, train, train_labels, test, test_labels)
        if "label_free" in self.protocol:
            scores |= self._label_free(train, subject)
        return scores

    def _features(self, part: Part, features_of: Callable[[Part], Tensor]) -> tuple[Tensor, Tensor | None]:
        """Features and labels of the images that could be read."""
        features, labels = readable(part, features_of(part), self.device)
        if len(features) < len(part):
            note = f"{len(part) - len(features)} images of {part.store.source.name} cannot be read: left out."
            if note not in self.notes:
                self.notes.append(note)
        return features, labels

    def _accuracies(
        self, row: str, train: Tensor, train_labels: Tensor, test: Tensor, test_labels: Tensor
    ) -> dict[str, Score]:
        by_name: dict[str, Tensor] = {}
        classes = self.judged.classes
        if "knn" in self.protocol:
            votes = knn_classify(train, train_labels, test, k=NEIGHBOURS, num_classes=classes)
            by_name |= {f"knn{k}": scores for k, scores in votes.items()}
        if "linear" in self.protocol:
            probe = linear_probe(train, train_labels, num_classes=classes, seed=self.seed)
            by_name["linear"] = probe.scores(test)
            self._note_probe(row, probe.c, probe.converged)
            told = {key: getattr(probe, key) for key in ("c", "converged", "iterations", "validation")}
            self.probes.setdefault(row, []).append(told)
        found = {}
        for name, scores in by_name.items():
            found[name] = Score.accuracy(accuracy(scores, test_labels), len(test_labels))
            if classes is not None and classes > 5:
                found[f"{name}_top5"] = Score.accuracy(accuracy(scores, test_labels, top=5), len(test_labels))
        return found

    def _note_probe(self, row: str, c: float, converged: bool) -> None:
        if not converged:
            self.notes.append(f"{row}: the linear probe did not converge; its accuracy may be too low.")
        if c in (C_GRID[0], C_GRID[-1]):
            self.notes.append(f"{row}: the linear probe chose C = {c:g}, an end of the range tried.")

    def _label_free(self, features: Tensor, subject: Subject | None) -> dict[str, Score]:
        figures = {"effective_rank": effective_rank(features), "rankme": rankme(features)}
        if len(features) > 1:
            figures["uniformity"] = uniformity(features)
        if self.views is not None and subject is not None:
            figures["alignment"] = _alignment(subject, self.judged.train, self.views)
        return {name: Score(value=value, std=None, n=len(features)) for name, value in figures.items()}


def readable(part: Part, features: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Features, on ``device``, and labels of the images that could be read."""
    readable = part.readable
    return features[readable].to(device), None if part.labels is None else part.labels[readable]


def _over_runs(runs: list[dict[str, Score]]) -> dict[str, Score]:
    return {name: Score.over_runs([run[name] for run in runs]) for name in runs[0]}


def _alignment(subject: Subject, part: Part, views: Views) -> float:
    """Alignment over two views of up to ``VIEWED`` images, spread over the part."""
    chosen = torch.linspace(0, len(part) - 1, min(len(part), VIEWED)).long()
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    with frozen(subject.model, subject.device):
        for indices in torch.split(chosen, 256):
            views_BVCSS = views(part.get(indices), part.positions[indices])[0]
            for view, half in enumerate(halves):
                half.append(subject.model(views_BVCSS[:, view].to(subject.device)).float().cpu())
    return alignment(torch.cat(halves[0]), torch.cat(halves[1]))
