"""Measurements while training: functions from a backbone to figures, which leave the backbone as it was.

Many processes share the features, and the first one makes figures of them.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

from torch import nn

from ssole import distributed
from ssole.config import PretrainConfig
from ssole.data.describe import is_in_memory
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError
from ssole.evaluation.accuracy import accuracy
from ssole.evaluation.datasets import EvaluationData, match, open_data
from ssole.evaluation.features import extract
from ssole.evaluation.knn import knn_classify
from ssole.evaluation.label_free import label_free_figures
from ssole.evaluation.preprocessing import Preprocessing
from ssole.progress import say
from ssole.runtime import Precision

if TYPE_CHECKING:
    from ssole.data.base import Spec

Evaluator = Callable[[nn.Module], dict[str, float]]
NEIGHBOURS = 20


def default_evaluators(
    config: PretrainConfig, data: Spec, store: ImageStore, **options: Any
) -> Mapping[int, Evaluator]:
    """Evaluators of a run that was given none, by the number of steps between measurements.

    With ``eval_data``, kNN accuracy on its test split, or on a fifth of it that is held out; label-free figures where
    it has no labels. Else, with ``knn_every``, kNN accuracy on the test split of the data. Where the data have no
    labels or no such split, nothing is measured, and a line on standard error says why.

    Args:
        config: of the run, with mean and std.
        data: the training images, and the store of them.
        store: the training images as decoded for training.
        options: of stores; ``progress=False`` also silences the line.

    Raises:
        DataError: ``eval_data`` cannot be opened.
        ValueError: ``eval_data`` has fewer training images than neighbours.
    """
    preprocessing = Preprocessing.from_config(config)
    if config.eval_data is not None:
        every = config.knn_every or max(1, len(store) // config.batch_size)
        return {every: _of_other_data(config, preprocessing, options)}
    if config.knn_every is None:
        return {}
    try:
        if is_in_memory(config.data):
            raise DataError("images in memory have no test split")
        test = preprocessing.open_store(open_source(data, split="test"), **options)
        if test.ids == store.ids:  # a folder that is itself called test
            raise DataError("the test images are those of training")
        if not preprocessing.suits(store):  # training decodes larger images than `ssole eval` does
            store = preprocessing.open_store(store.source, **options)
        return {config.knn_every: knn_evaluator(store, test, preprocessing, precision=config.precision)}
    except ValueError as error:
        say(f"no kNN accuracy while training: {error}", enabled=options["progress"])
        return {}


def knn_evaluator(
    train: ImageStore,
    test: ImageStore,
    preprocessing: Preprocessing,
    *,
    k: Sequence[int] = (20,),
    precision: Precision = "auto",
) -> Evaluator:
    """Evaluator for the training loop: backbone -> {"knn20": top-1 accuracy in [0, 1]}, with an entry for each k.

    The accuracy is exactly that of :func:`evaluate` for the same weights, data and precision. The evaluator runs on the
    device of the backbone's parameters and leaves the backbone as it was, training modes included.

    Stores hold labelled images, and suit the preprocessing of the backbone (:meth:`Preprocessing.suits`).

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
    return _knn_of(match(train, test), preprocessing, k, precision)


def _of_other_data(config: PretrainConfig, preprocessing: Preprocessing, options: dict[str, Any]) -> Evaluator:
    """Evaluator on `eval_data`."""
    given = config.eval_data if isinstance(config.eval_data, str) else list(config.eval_data or ())
    data = open_data(given, None, preprocessing, seed=config.seed, **options)
    if data.test is None:
        return partial(_label_free_of, data=data, preprocessing=preprocessing, precision=config.precision)
    return _knn_of(data, preprocessing, (NEIGHBOURS,), config.precision)


def _knn_of(data: EvaluationData, preprocessing: Preprocessing, k: Sequence[int], precision: Precision) -> Evaluator:
    assert data.test is not None
    memory, queries = data.train, data.test
    if max(k) > len(memory):
        raise ValueError(
            f"k is {tuple(k)} and there are {len(memory)} training images ({memory.store.source.name}): give at least "
            f"{max(k)} labelled images to learn from"
        )

    def evaluate_knn(backbone: nn.Module) -> dict[str, float]:
        device = next(backbone.parameters()).device
        features_of = partial(extract, backbone, preprocessing=preprocessing, precision=precision, progress=False)
        (train_features, train_labels), (test_features, test_labels) = (
            subset.readable_rows(features_of(subset)) for subset in (memory, queries)
        )

        def figures() -> dict[str, float]:
            scores = knn_classify(
                train_features.to(device), train_labels, test_features.to(device), k=k, num_classes=data.classes
            )
            return {f"knn{one}": accuracy(scores[one], test_labels) for one in k}

        return distributed.on_rank_0(figures)

    return evaluate_knn


def _label_free_of(
    backbone: nn.Module, *, data: EvaluationData, preprocessing: Preprocessing, precision: Precision
) -> dict[str, float]:
    features = extract(backbone, data.train, preprocessing, precision=precision, progress=False)
    return distributed.on_rank_0(lambda: label_free_figures(data.train.readable_rows(features)[0]))
