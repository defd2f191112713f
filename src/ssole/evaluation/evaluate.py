"""Evaluation of frozen models: `evaluate`, `embed`, and kNN accuracy while training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Literal

import torch
from torch import Tensor, nn

from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.evaluation.datasets import EvaluationData, Subset, match, open_data
from ssole.evaluation.features import RAW_PIXEL_SIZE, Embeddings, extract, frozen, raw_pixels
from ssole.evaluation.knn import accuracy, knn_classify
from ssole.evaluation.label_free import alignment, centred_effective_rank, rankme, uniformity
from ssole.evaluation.linear import C_GRID, linear_probe
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.results import EvaluationResult, Score
from ssole.models.load import load, untrained
from ssole.runtime import Precision, resolve_device

if TYPE_CHECKING:
    from ssole.data.base import Spec

ModelOrRun = nn.Module | str | PathLike[str] | Any
"""Module giving features (B, F); or a run folder, its ``backbone.safetensors``, or the Run of pretraining."""
Protocol = Literal["knn", "linear", "label_free"]
PROTOCOLS: tuple[Protocol, ...] = ("knn", "linear", "label_free")
NEIGHBOURS = (20, 10)
ALIGNMENT_SAMPLE = 10_000
"""Most images whose views are compared."""
Views = Callable[[Tensor | list[Tensor], Tensor], Sequence[Tensor]]
"""Function from decoded images and their indices to views: for each crop group (B, V, C, S, S) float32 for the model,
with V >= 2 in the first. ``functools.partial(ssole.make_views, recipe=..., seed=0, epoch=0)`` is one."""


def evaluate(
    model_or_run: ModelOrRun | Sequence[ModelOrRun],
    data: Spec,
    *,
    test: Spec | None = None,
    protocol: Protocol | Sequence[Protocol] = ("knn", "linear"),
    baselines: bool = True,
    views: Views | None = None,
    seed: int = 0,
    device: torch.device | str = "auto",
    precision: Precision = "auto",
    progress: bool = True,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> EvaluationResult:
    """Accuracy of simple classifiers on frozen features, beside raw pixels and the untrained network.

    kNN (:func:`~ssole.evaluation.knn.knn_classify`, k = 20 and 10) and the linear probe
    (:func:`~ssole.evaluation.linear.linear_probe`) learn from the train images of ``data`` and are scored on the test
    images, which nothing else sees. Without labels, the label-free metrics are given instead, and a note says so.

    Args:
        model_or_run: a run folder, a ``backbone.safetensors``, a Run, or a module giving features (B, F); or a list of
            these (the same training with several seeds), for means and deviations over them.
        data: as for pretraining; classifiers learn from its train split.
        test: the test images; by default the test split of ``data``, else a stratified fifth of it, and a note says so.
        protocol: "knn", "linear" or "label_free", or several of them.
        baselines: also evaluate raw pixels and, for runs, the same network at its initial weights.
        views: makes two views of each image, for the alignment; without it, alignment is left out.
        seed: of the hold-out and validation splits.
        device: "auto" is the GPU where there is one.
        precision, progress: as for :func:`~ssole.evaluation.features.extract`.
        image_size, mean, std: preprocessing of a module that has neither attributes of these names nor timm's
            ``pretrained_cfg``; they take precedence over both.

    Raises:
        DataError: data that cannot be opened, or labels that differ between train and test.
        ValueError: a module whose preprocessing is unknown, features that are not finite, or fewer training images
            than k.
    """
    protocols: tuple[Protocol, ...] = (protocol,) if isinstance(protocol, str) else tuple(protocol)
    if not protocols or not set(protocols) <= set(PROTOCOLS):
        raise ValueError(f"protocol is {protocol!r}; choose from {PROTOCOLS}")
    given = list(model_or_run) if isinstance(model_or_run, (list, tuple)) else [model_or_run]
    how = {"image_size": image_size, "mean": mean, "std": std}
    evaluation = _Evaluation(
        partial(open_data, data, test, seed=seed, progress=progress),
        protocols,
        views,
        seed=seed,
        how={"device": resolve_device(device), "precision": precision, "progress": progress},
    )
    models = [_load(one, load, how) for one in given]
    channels = {preprocessing.channels for _, preprocessing in models}
    if len(channels) > 1:
        raise ValueError(
            f"the models take images of different channels: {sorted(map(str, channels))}; evaluate them separately"
        )
    preprocessing = models[0][1]
    shown = evaluation.data(preprocessing)
    name = "trained" if len(models) == 1 else f"trained ({len(models)} runs)"
    rows = {name: evaluation.models(name, models)}
    if baselines:
        side = min(preprocessing.image_size, RAW_PIXEL_SIZE)
        raw = f"raw pixels ({side}x{side})"
        rows[raw] = evaluation.row(raw, shown, partial(raw_pixels, preprocessing=preprocessing))
        runs = [one for one in given if not isinstance(one, nn.Module)]
        if runs:
            rows["untrained"] = evaluation.models("untrained", [_load(run, untrained, how) for run in runs])
        else:
            evaluation.notes.append("No untrained row: the initial weights of a module are unknown; give its run.")
    return EvaluationResult(
        rows=rows,
        train=str(shown.train),
        test=None if shown.test is None else str(shown.test),
        classes=shown.classes,
        notes=evaluation.notes,
        probes=evaluation.probes,
    )


def embed(
    model_or_run: ModelOrRun,
    data: Spec,
    *,
    device: torch.device | str = "auto",
    precision: Precision = "auto",
    progress: bool = True,
    image_size: int | None = None,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
) -> Embeddings:
    """Frozen features of every readable image of ``data`` (its train split), with their ids and labels.

    Images that cannot be read are left out, with a warning that says how many and names the first.

    Args:
        model_or_run, device, precision, progress, image_size, mean, std: as for :func:`evaluate`.
        data: as for pretraining.

    Raises:
        DataError: data that cannot be opened, or too many unreadable images.
        ValueError: a module whose preprocessing is unknown, or features that are not finite.
    """
    model, preprocessing = _load(model_or_run, load, {"image_size": image_size, "mean": mean, "std": std})
    place = resolve_device(device)
    store = preprocessing.open_store(open_source(data), progress=progress)
    array = extract(model, store, preprocessing, device=place, precision=precision, progress=progress).numpy()
    if store.unreadable:
        _, first, reason = store.unreadable[0]
        warnings.warn(
            f"{len(store.unreadable)} of {len(store)} images cannot be read and are left out: {first} ({reason}), ...",
            stacklevel=2,
        )
    readable = Subset.whole(store).readable.numpy()
    return Embeddings(
        array=array[readable],
        ids=[name for name, good in zip(store.ids, readable, strict=True) if good],
        labels=None if store.labels is None else store.labels[readable],
        classes=store.source.classes,
    )


def knn_evaluator(
    train: ImageStore,
    test: ImageStore,
    preprocessing: Preprocessing,
    *,
    k: Sequence[int] = (20,),
    precision: Precision = "auto",
) -> Callable[[nn.Module], dict[str, float]]:
    """Evaluator for the training loop: backbone -> {"knn20": top-1 accuracy in [0, 1]}, with an entry for each k.

    The figure is exactly that of :func:`evaluate` for the same weights and data. The evaluator runs where the
    backbone's parameters are and leaves the backbone as it was, training modes included.

    Args:
        train, test: stores of labelled images that suit the preprocessing (:meth:`Preprocessing.suits`).
        preprocessing: of the backbone.
        k: numbers of neighbours.
        precision: as for :func:`~ssole.evaluation.features.extract`.

    Raises:
        DataError: without labels, or with other classes in test.
        ValueError: at once, when a store is decoded otherwise or a k exceeds the number of training images.
    """
    for store in (train, test):
        if not preprocessing.suits(store):
            raise ValueError(
                f"the images of {store.source.name} are decoded at size {store.shrink_to} with channels "
                f"{store.channels}, and the model needs size {preprocessing.decode_size} and channels "
                f"{preprocessing.channels}: open them with Preprocessing.open_store"
            )
    data = match(train, test)
    assert data.test is not None
    memory, queries = data.train, data.test
    if max(k) > len(memory):
        raise ValueError(f"k is {tuple(k)} and there are {len(memory)} training images: pass a smaller k")

    def evaluate_knn(backbone: nn.Module) -> dict[str, float]:
        device = next(backbone.parameters()).device
        features_of = partial(extract, backbone, preprocessing=preprocessing, precision=precision, progress=False)
        (train_features, train_labels), (test_features, test_labels) = (
            _readable(subset, features_of(subset), device) for subset in (memory, queries)
        )
        assert train_labels is not None
        assert test_labels is not None
        scores = knn_classify(train_features, train_labels, test_features, k=k, num_classes=data.classes)
        return {f"knn{one}": accuracy(scores[one], test_labels) for one in k}

    return evaluate_knn


class _Evaluation:
    """Metrics of one row of the result after another, with the notes and probes that they leave.

    Args:
        open_data: opens the data for a preprocessing.
        protocols: what to measure where there are labels.
        views: for the alignment.
        seed: of the probe's validation split.
        how: device, precision and progress of :func:`extract`.
    """

    def __init__(
        self,
        open_data: Callable[[Preprocessing], EvaluationData],
        protocols: Sequence[Protocol],
        views: Views | None,
        *,
        seed: int,
        how: dict[str, Any],
    ) -> None:
        self._open_data, self._protocols, self._views, self._seed, self._how = open_data, protocols, views, seed, how
        self._opened: list[EvaluationData] = []
        self.notes: list[str] = []
        self.probes: dict[str, list[dict[str, Any]]] = {}

    def data(self, preprocessing: Preprocessing) -> EvaluationData:
        """The data, decoded for a preprocessing; opened once for all that they suit."""
        for data in self._opened:
            if all(preprocessing.suits(subset.store) for subset in (data.train, data.test) if subset is not None):
                return data
        self._opened.append(self._open_data(preprocessing))
        for note in self._opened[-1].notes:
            self._note(note)
        return self._opened[-1]

    def models(self, row: str, models: Sequence[tuple[nn.Module, Preprocessing]]) -> dict[str, Score]:
        """Scores of one model, or means over several."""
        runs = []
        for model, preprocessing in models:
            data = self.data(preprocessing)
            scores = self.row(row, data, partial(extract, model, preprocessing=preprocessing, **self._how))
            if "rankme" in scores and self._views is not None:
                value = _alignment(model, data.train, self._views, self._how["device"])
                scores["alignment"] = Score(value=value, std=None, n=scores["rankme"].n)
            runs.append(scores)
        return {name: Score.over_runs([run[name] for run in runs]) for name in runs[0]}

    def row(self, row: str, data: EvaluationData, features_of: Callable[[Subset], Tensor]) -> dict[str, Score]:
        """Scores of the features that a function gives; without labels, the label-free ones."""
        protocols = self._protocols if data.test is not None else ("label_free",)
        train, train_labels = self._features(data.train, features_of)
        scores: dict[str, Score] = {}
        if data.test is not None and {"knn", "linear"} & set(protocols):
            test, test_labels = self._features(data.test, features_of)
            assert train_labels is not None
            assert test_labels is not None
            if bool((train == train[0]).all()):
                self._note(f"{row}: all features are equal; the representation has collapsed.")
            scores |= self._accuracies(row, data.classes, train, train_labels, test, test_labels)
        if "label_free" in protocols:
            figures = {"centred_effective_rank": centred_effective_rank(train), "rankme": rankme(train)}
            if len(train) > 1:
                figures["uniformity"] = uniformity(train)
            scores |= {name: Score(value=value, std=None, n=len(train)) for name, value in figures.items()}
        return scores

    def _features(self, subset: Subset, features_of: Callable[[Subset], Tensor]) -> tuple[Tensor, Tensor | None]:
        features, labels = _readable(subset, features_of(subset), self._how["device"])
        if len(features) < len(subset):
            unread = len(subset) - len(features)
            self._note(f"{unread} images of {subset.store.source.name} cannot be read: left out.")
        return features, labels

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
            self.probes.setdefault(row, []).append(facts)
        scores = {}
        for name, votes_QC in by_name.items():
            scores[name] = Score.accuracy(accuracy(votes_QC, test_labels), len(test_labels))
            if classes is not None and classes > 5:
                scores[f"{name}_top5"] = Score.accuracy(accuracy(votes_QC, test_labels, top=5), len(test_labels))
        return scores

    def _note(self, note: str) -> None:
        if note not in self.notes:
            self.notes.append(note)


def _load(
    model_or_run: ModelOrRun, loader: Callable[[Any], nn.Module], how: dict[str, Any]
) -> tuple[nn.Module, Preprocessing]:
    model = model_or_run if isinstance(model_or_run, nn.Module) else loader(model_or_run)
    return model, Preprocessing.from_model(model, **how)


def _readable(subset: Subset, features: Tensor, device: torch.device) -> tuple[Tensor, Tensor | None]:
    """Features, on ``device``, and labels of the images that can be read."""
    readable = subset.readable
    return features[readable].to(device), None if subset.labels is None else subset.labels[readable]


def _alignment(model: nn.Module, subset: Subset, views: Views, device: torch.device) -> float:
    """Alignment over two views of up to ``ALIGNMENT_SAMPLE`` images, evenly spaced over the subset."""
    chosen = torch.linspace(0, len(subset) - 1, min(len(subset), ALIGNMENT_SAMPLE)).long()
    halves: tuple[list[Tensor], list[Tensor]] = ([], [])
    with frozen(model, device):
        for indices in torch.split(chosen, 256):
            views_BVCSS = views(subset.get(indices), subset.positions[indices])[0]
            for view, half in enumerate(halves):
                half.append(model(views_BVCSS[:, view].to(device)).float().cpu())
    return alignment(torch.cat(halves[0]), torch.cat(halves[1]))
