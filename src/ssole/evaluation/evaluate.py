"""Evaluation of frozen models: `evaluate`, `embed`, and kNN accuracy while training."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.evaluation.accuracy import accuracy
from ssole.evaluation.datasets import match, open_data
from ssole.evaluation.features import Embeddings, Views, extract
from ssole.evaluation.knn import knn_classify
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.results import EvaluationResult
from ssole.evaluation.scoring import Scoring
from ssole.models.load import load, untrained
from ssole.runtime import Precision, resolve_device

if TYPE_CHECKING:
    from ssole.data.base import Spec

ModelOrRun = nn.Module | str | PathLike[str] | Any
"""Module that returns features (B, F); or a run folder, its ``backbone.safetensors``, or the Run of pretraining."""


def evaluate(
    model_or_run: ModelOrRun | Sequence[ModelOrRun],
    data: Spec,
    *,
    test: Spec | None = None,
    protocol: str | Sequence[str] = ("knn", "linear"),
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

    kNN (k = 20 and 10) and the linear probe learn from the train images of ``data`` and are scored on the test images,
    which are used for nothing else. Without labels, the result has the label-free metrics instead, and a note says so.

    Args:
        model_or_run: a run folder, a ``backbone.safetensors``, a Run, or a module that returns features (B, F). A list
            of these, such as runs of one recipe with several seeds, gives means and standard deviations.
        data: as for pretraining; classifiers learn from its train split.
        test: the test images; by default the test split of ``data``, else a stratified fifth of it, and a note says so.
        protocol: "knn", "linear" or "label_free", or several of them.
        baselines: also evaluate raw pixels and, for runs, the same network at its initial weights.
        views: function that makes the views of images for the alignment; without it, alignment is left out.
        seed: seed of the hold-out and validation splits.
        device: "auto" is the GPU where there is one.
        precision, progress: as for :func:`~ssole.evaluation.features.extract`.
        image_size, mean, std: preprocessing; by default the model's attributes, else timm's ``pretrained_cfg``.

    Raises:
        DataError: data that cannot be opened, or test classes that train lacks.
        ValueError: unknown preprocessing, features that are not finite, or fewer training images than k.
    """
    given = list(model_or_run) if isinstance(model_or_run, (list, tuple)) else [model_or_run]
    overrides = {"image_size": image_size, "mean": mean, "std": std}
    how = {"device": resolve_device(device), "precision": precision, "progress": progress}
    scoring = Scoring(partial(open_data, data, test, seed=seed, progress=progress), protocol, views, seed, how)
    models = [model_and_preprocessing(one, load, overrides) for one in given]
    scoring.add_models("trained" if len(models) == 1 else f"trained ({len(models)} runs)", models)
    if baselines:
        scoring.add_raw_pixels(models[0][1])
        scoring.add_untrained(
            [model_and_preprocessing(one, untrained, overrides) for one in given if not isinstance(one, nn.Module)]
        )
    return scoring.result()


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
        ValueError: unknown preprocessing, or features that are not finite.
    """
    device = resolve_device(device)
    model, preprocessing = model_and_preprocessing(
        model_or_run, load, {"image_size": image_size, "mean": mean, "std": std}
    )
    store = preprocessing.open_store(open_source(data), progress=progress)
    array = extract(model, store, preprocessing, device=device, precision=precision, progress=progress).numpy()
    if store.unreadable:
        _, first, reason = store.unreadable[0]
        warnings.warn(
            f"{len(store.unreadable)} of {len(store)} images cannot be read and are left out: {first} ({reason}), ...",
            stacklevel=2,
        )
    readable = store.readable
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

    The accuracy is exactly that of :func:`evaluate` for the same weights, data and precision. The evaluator runs on the
    device of the backbone's parameters and leaves the backbone as it was, training modes included.

    Args:
        train, test: stores of labelled images that suit the preprocessing (:meth:`Preprocessing.suits`).
        preprocessing: preprocessing of the backbone.
        k: numbers of neighbours.
        precision: as for :func:`~ssole.evaluation.features.extract`.

    Raises:
        DataError: a store has no labels, or test has classes that train lacks.
        ValueError: a store is decoded in another way, or a k exceeds the number of training images.
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
            subset.readable_rows(features_of(subset)) for subset in (memory, queries)
        )
        scores = knn_classify(
            train_features.to(device), train_labels, test_features.to(device), k=k, num_classes=data.classes
        )
        return {f"knn{one}": accuracy(scores[one], test_labels) for one in k}

    return evaluate_knn


def model_and_preprocessing(
    model_or_run: ModelOrRun, loader: Callable[[Any], nn.Module], overrides: dict[str, Any]
) -> tuple[nn.Module, Preprocessing]:
    """Model of what a user gave as model or run, and its preprocessing, of which `overrides` change a part."""
    model = model_or_run if isinstance(model_or_run, nn.Module) else loader(model_or_run)
    return model, Preprocessing.from_model(model, **overrides)
