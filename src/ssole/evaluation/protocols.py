"""What a user calls: judge a model, embed images, and watch accuracy while training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import nn

from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.evaluation.datasets import Part, match, open_judged
from ssole.evaluation.features import RAW_PIXEL_SIZE, Embeddings
from ssole.evaluation.judge import PROTOCOLS, Judge, Protocol, Views, readable
from ssole.evaluation.knn import accuracy, knn_classify
from ssole.evaluation.results import EvaluationResult
from ssole.evaluation.subject import ModelOrRun, Subject, feeding, load_model, load_untrained
from ssole.models.load import LoadedBackbone
from ssole.runtime import Precision, resolve_device

if TYPE_CHECKING:
    from ssole.data.base import Spec


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
    """Judge frozen features by what simple classifiers make of them, beside raw pixels and the untrained network.

    kNN (:func:`~ssole.evaluation.knn.knn_classify`, k = 20 and 10) and the linear probe
    (:func:`~ssole.evaluation.linear.linear_probe`) learn from the train images of ``data`` and are scored on the test
    images, which nothing else sees. Without labels, the label-free figures are given instead, and a note says so.

    Args:
        model_or_run: a run folder, a ``backbone.safetensors``, a Run, or a module giving features (B, F); or a list of
            these (the same training with several seeds), for means and deviations over them.
        data: as for pretraining; its train split is learned from.
        test: the test images; by default the test split of ``data``, else a stratified fifth of it, as a note tells.
        protocol: "knn", "linear" or "label_free", or several of them.
        baselines: also judge raw pixels and, for runs, the same network at its initial weights.
        views: makes two views of each image, for the figure of alignment; without it, alignment is left out.
        seed: of the hold-out and validation splits.
        device: "auto" is the GPU where there is one.
        precision, progress: as for :func:`~ssole.evaluation.features.extract`.
        image_size, mean, std: how to feed a module that does not say so itself (by attributes of these names, or timm's
            ``pretrained_cfg``); they take precedence over what it says.

    Raises:
        DataError: data that cannot be opened, or labels that differ between train and test.
        ValueError: a module that does not say how to feed it, features that are not finite, or fewer training images
            than k.
    """
    protocols: tuple[Protocol, ...] = (protocol,) if isinstance(protocol, str) else tuple(protocol)
    if not protocols or not set(protocols) <= set(PROTOCOLS):
        raise ValueError(f"protocol is {protocol!r}; choose from {PROTOCOLS}")
    given = list(model_or_run) if isinstance(model_or_run, (list, tuple)) else [model_or_run]
    place = resolve_device(device)

    def subject(model: nn.Module) -> Subject:
        how = feeding(model, image_size, mean, std)
        return Subject(model=model, device=place, precision=precision, progress=progress, **how)

    trained = [subject(load_model(one)) for one in given]
    judged = open_judged(data, test, seed=seed, progress=progress, **_opening(trained))
    wanted: Sequence[Protocol] = protocols if judged.test is not None else ("label_free",)
    judge = Judge(judged, wanted, views, seed, place)
    name = "trained" if len(trained) == 1 else f"trained ({len(trained)} runs)"
    rows = {name: judge.models(name, trained)}
    if baselines:
        first = trained[0]
        side = min(first.image_size, RAW_PIXEL_SIZE)
        raw = f"raw pixels ({side}x{side})"
        rows[raw] = judge.pixels(raw, side, first.mean, first.std)
        runs = [one for one in given if not isinstance(one, nn.Module)]
        if runs:
            rows["untrained"] = judge.models("untrained", [subject(load_untrained(one)) for one in runs])
        else:
            judge.notes.append("No untrained row: a module does not tell its initial weights; give its run.")
    return EvaluationResult(
        rows=rows,
        train=str(judged.train),
        test=None if judged.test is None else str(judged.test),
        classes=judged.classes,
        notes=judge.notes,
        probes=judge.probes,
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
        ValueError: a module that does not say how to feed it, or features that are not finite.
    """
    model = load_model(model_or_run)
    place = resolve_device(device)
    subject = Subject(
        model=model, device=place, precision=precision, progress=progress, **feeding(model, image_size, mean, std)
    )
    store = ImageStore(open_source(data), progress=progress, **_opening([subject]))
    array = subject.features(store).numpy()
    readable = np.ones(len(store), dtype=bool)
    if store.unreadable:
        _, first, reason = store.unreadable[0]
        warnings.warn(
            f"{len(store.unreadable)} of {len(store)} images cannot be read and are left out: {first} ({reason}), ...",
            stacklevel=2,
        )
        readable[[index for index, _, _ in store.unreadable]] = False
    return Embeddings(
        array=array[readable],
        ids=[name for name, good in zip(store.ids, readable, strict=True) if good],
        labels=None if store.labels is None else store.labels[readable],
        classes=store.source.classes,
    )


def _opening(subjects: Sequence[Subject]) -> dict[str, Any]:
    """How images for these models are decoded: no larger than they need, whole photographs would fill the memory.

    Twice the size of the input is left for the exact resize.
    """
    models = [subject.model for subject in subjects]
    channels = {model.channels if isinstance(model, LoadedBackbone) else None for model in models}
    if len(channels) > 1:
        raise ValueError(
            f"the models take images of different channels: {sorted(map(str, channels))}; judge them apart"
        )
    return {"shrink_to": 2 * max(subject.image_size for subject in subjects), "channels": channels.pop()}


def knn_evaluator(
    train: ImageStore,
    test: ImageStore,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    k: Sequence[int] = (20,),
    tau: float = 0.07,
    max_train: int | None = None,
    max_test: int | None = None,
    precision: Precision = "auto",
    seed: int = 0,
) -> Callable[[nn.Module], dict[str, float]]:
    """A callable for the training loop: backbone -> {"knn20": top-1 accuracy in [0, 1]}, an entry for each k.

    It runs where the backbone's parameters are and leaves the backbone as it found it, training modes included.
    ``max_train`` and ``max_test`` bound the cost by a fixed random subset (a function of ``seed``); such a figure draws
    a curve, and is not the one to report.

    Raises:
        DataError: without labels, or with other classes in test.
        ValueError: when a k exceeds the number of training images; both at once, not at the first evaluation.
    """
    judged = match(train, test)
    assert judged.test is not None
    memory, queries = _some(judged.train, max_train, seed), _some(judged.test, max_test, seed)
    if max(k) > len(memory):
        raise ValueError(f"k is {tuple(k)} and there are {len(memory)} training images: pass a smaller k")
    how: dict[str, Any] = {"image_size": image_size, "mean": tuple(mean), "std": tuple(std)}

    def evaluate_knn(backbone: nn.Module) -> dict[str, float]:
        place = next(backbone.parameters()).device
        subject = Subject(model=backbone, device=place, progress=False, precision=precision, **how)
        (train_features, train_labels), (test_features, test_labels) = (
            readable(part, subject.features(part), place) for part in (memory, queries)
        )
        assert train_labels is not None
        assert test_labels is not None
        scores = knn_classify(train_features, train_labels, test_features, k=k, tau=tau, num_classes=judged.classes)
        return {f"knn{one}": accuracy(scores[one], test_labels) for one in k}

    return evaluate_knn


def _some(part: Part, limit: int | None, seed: int) -> Part:
    if limit is None or limit >= len(part):
        return part
    return part.only(torch.randperm(len(part), generator=torch.Generator().manual_seed(seed))[:limit].sort().values)
