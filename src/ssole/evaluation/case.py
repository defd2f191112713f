"""Case: one model or baseline under evaluation, with its features of the train and test images."""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor, nn

from ssole.evaluation.datasets import EvaluationData, Subset
from ssole.evaluation.features import DecodedImages, Views, extract, raw_pixels
from ssole.evaluation.linear import C_GRID, LinearProbe, linear_probe
from ssole.evaluation.preprocessing import Preprocessing
from ssole.runtime import Precision


@dataclass(kw_only=True)
class Case:
    """Model or baseline under evaluation. Features and the linear probe are computed once, when they are first needed.

    Features are on the device, labels on the CPU. Images that cannot be read are left out.
    """

    row: str
    """Name in the table."""
    data: EvaluationData
    preprocessing: Preprocessing
    model: nn.Module | None
    """None for raw pixels."""
    views: Views | None
    seed: int
    device: torch.device
    precision: Precision
    progress: bool
    notes: list[str] = field(default_factory=list)
    """What a reader of the figures must know; protocols add to it."""

    @cached_property
    def train(self) -> tuple[Tensor, Tensor]:
        """Features (N, F) and labels (N,) of the train images."""
        features, labels = self._features(self.data.train)
        if self.data.test is not None and bool((features == features[:1]).all()):
            self.note("all features are equal; the representation has collapsed.")
        return features, labels

    @cached_property
    def test(self) -> tuple[Tensor, Tensor]:
        """Features (Q, F) and labels (Q,) of the test images."""
        assert self.data.test is not None
        return self._features(self.data.test)

    def features_of(self, images: DecodedImages, *, progress: bool) -> Tensor:
        """Features (N, F) of decoded images."""
        if self.model is None:
            return raw_pixels(images, self.preprocessing, progress=progress)
        return self.extract(self.model, images, progress=progress)

    def extract(self, model: nn.Module, images: DecodedImages, *, progress: bool) -> Tensor:
        """Features (N, F) of a network that takes the same input as the model."""
        device, precision = self.device, self.precision
        return extract(model, images, self.preprocessing, device=device, precision=precision, progress=progress)

    @property
    def classes(self) -> int:
        """Number of classes."""
        assert self.data.classes is not None
        return self.data.classes

    @cached_property
    def probe(self) -> LinearProbe:
        """Linear probe of the train features."""
        probe = linear_probe(*self.train, num_classes=self.classes, seed=self.seed, progress=self.progress)
        if not probe.converged:
            self.note("the linear probe did not converge; its accuracy may be too low.")
        if probe.c in (C_GRID[0], C_GRID[-1]):
            self.note(f"the linear probe chose C = {probe.c:g}, an end of the range tried.")
        return probe

    def kind(self, subset: Subset) -> str:
        """Name of the images of a subset, in the plural. It says which, as train and test images may share a name."""
        kind = "test " if subset is self.data.test else "training " if self.data.test is not None else ""
        return f"{kind}images of {subset.store.source.name}"

    def note(self, text: str) -> None:
        """Add a note about this case."""
        self.notes.append(f"{self.row}: {text}")

    def _features(self, subset: Subset) -> tuple[Tensor, Tensor]:
        features, labels = subset.readable_rows(self.features_of(subset, progress=self.progress))
        if len(features) < len(subset):
            unread = len(subset) - len(features)
            self.notes.append(f"{unread} {self.kind(subset)} cannot be read: left out.")
        return features.to(self.device), labels
