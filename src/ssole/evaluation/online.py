"""Measurements while training: functions from a backbone to figures, which leave the backbone as it was.

Many processes share the features, and the first one makes figures of them.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

from torch import Tensor, nn

from ssole import distributed
from ssole.config import PretrainConfig
from ssole.data.base import Spec
from ssole.data.describe import is_in_memory
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError
from ssole.evaluation.accuracy import accuracy
from ssole.evaluation.datasets import EvaluationData, Subset, match, open_data
from ssole.evaluation.features import extract
from ssole.evaluation.knn import knn_classify
from ssole.evaluation.label_free import label_free_figures
from ssole.evaluation.preprocessing import Preprocessing
from ssole.progress import say
from ssole.runtime import Precision

Evaluator = Callable[[nn.Module], dict[str, float]]
NEIGHBOURS = 20


def default_evaluators(
    config: PretrainConfig, data: Spec, eval_data: Spec | None, store: ImageStore, *, progress: bool, **options: Any
) -> Mapping[int, Evaluator]:
    """Evaluators of a run that was given none, by the number of steps between measurements.

    With ``eval_data``, kNN accuracy on its test split, or on a fifth of it that is held out; label-free figures where
    it has no labels. Else, with ``knn_every``, kNN accuracy on the test split of the data. Where the data have no
    labels or no such split, nothing is measured, and with ``progress`` a line on standard error says why.

    ``config`` has mean and std; ``store`` holds the training images ``data`` as decoded for training; ``options`` are
    those of stores. It is a DataError if ``eval_data`` cannot be opened, and a ValueError if it has fewer training
    images than neighbours.
    """
    preprocessing = Preprocessing.from_config(config)
    if eval_data is not None:
        every = config.knn_every or max(1, len(store) // config.batch_size)
        other = open_data(eval_data, None, preprocessing, seed=config.seed, progress=progress, **options)
        return {every: _evaluator(other, preprocessing, config.precision)}
    if config.knn_every is None:
        return {}
    try:
        if is_in_memory(config.data):
            raise DataError("images in memory have no test split")
        test = preprocessing.open_store(open_source(data, split="test"), progress=progress, **options)
        if test.ids == store.ids:  # a folder that is itself called test
            raise DataError("the test images are those of training")
        if not preprocessing.suits(store):  # training decodes larger images than `ssole eval` does
            store = preprocessing.open_store(store.source, progress=progress, **options)
        return {config.knn_every: knn_evaluator(store, test, preprocessing, precision=config.precision)}
    except ValueError as error:
        say(f"no kNN accuracy while training: {error}", enabled=progress)
        return {}


def knn_evaluator(
    train: ImageStore, test: ImageStore, preprocessing: Preprocessing, *, precision: Precision = "auto"
) -> Evaluator:
    """Evaluator for the training loop: backbone -> {"knn20": top-1 accuracy in [0, 1]}.

    The accuracy is exactly that of :func:`evaluate` for the same weights, data and precision. It is left out, with a
    warning, if fewer than 20 training images can be read. The evaluator runs on the device of the backbone, and leaves
    it as it was, training modes included.

    Stores hold labelled images, and suit the preprocessing of the backbone (:meth:`Preprocessing.suits`).

    Raises:
        DataError: a store has no labels, or test has classes that train lacks.
        ValueError: a store is decoded in another way, or there are fewer than 20 training images.
    """
    for store in (train, test):
        if not preprocessing.suits(store):
            raise ValueError(
                f"the images of {store.source.name} are decoded at size {store.shrink_to} with channels "
                f"{store.channels}, and the model needs size {preprocessing.decode_size} and channels "
                f"{preprocessing.channels}: open them with Preprocessing.open_store"
            )
    return _evaluator(match(train, test), preprocessing, precision)


def _evaluator(data: EvaluationData, preprocessing: Preprocessing, precision: Precision) -> Evaluator:
    """Evaluator on opened data: kNN accuracy, or label-free figures where there are no labels."""
    if data.test is not None and len(data.train) < NEIGHBOURS:
        raise ValueError(
            f"k is {NEIGHBOURS} and there are {len(data.train)} training images ({data.train.store.source.name}): give "
            f"at least {NEIGHBOURS} labelled images to learn from"
        )

    def evaluate(backbone: nn.Module) -> dict[str, float]:
        def features_of(subset: Subset) -> tuple[Tensor, Tensor]:
            features = extract(backbone, subset, preprocessing, precision=precision, progress=False)
            return subset.readable_rows(features)

        train, labels = features_of(data.train)
        test, truth = (None, None) if data.test is None else features_of(data.test)

        def figures() -> dict[str, float]:
            if test is None or truth is None:
                return label_free_figures(train)
            if len(train) < NEIGHBOURS:  # only now is it known how many can be read
                warnings.warn(f"no kNN accuracy: only {len(train)} training images can be read", stacklevel=2)
                return {}
            device, k = next(backbone.parameters()).device, [NEIGHBOURS]
            votes = knn_classify(train.to(device), labels, test.to(device), k=k, num_classes=data.classes)
            return {f"knn{NEIGHBOURS}": accuracy(votes[NEIGHBOURS], truth)}

        return distributed.on_rank_0(figures)

    return evaluate
