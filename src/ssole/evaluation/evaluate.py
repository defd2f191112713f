"""`evaluate`: accuracy of simple classifiers on frozen features, beside baselines."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from itertools import chain
from typing import Any

import torch
from torch import nn

from ssole import distributed
from ssole.config import ConfigError
from ssole.data.base import Spec
from ssole.evaluation.datasets import open_data
from ssole.evaluation.features import RAW_PIXEL_SIZE, Views, evaluation_device
from ssole.evaluation.models import (
    ModelOrRun,
    UnavailableError,
    is_run,
    model_and_preprocessing,
    most_unreadable,
)
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.results import EvaluationResult
from ssole.evaluation.scoring import Scoring
from ssole.models.load import untrained
from ssole.runtime import Precision


def evaluate(
    model_or_run: ModelOrRun | Sequence[ModelOrRun] | Mapping[str, ModelOrRun | Sequence[ModelOrRun]],
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

    Classifiers learn from the train images of ``data`` only, and are scored on the test images. Without labels, the
    result has the label-free metrics instead, and a note says so.

    Args:
        model_or_run: what :func:`ssole.evaluation.models.open_model` opens: a run, a module, "timm:NAME", ... A
            list, such as runs of several seeds, gives means and standard deviations. A dict has a row for each name;
            of these, pretrained weights that cannot be had here are left out, and a note says so.
        data: as for pretraining; classifiers learn from its train split.
        test: the test images; by default the test split of ``data``, else a stratified fifth of it, and a note says so.
        protocol: one or several of ``ssole.evaluation.protocols.PROTOCOLS``, such as "knn", "linear" or "label-free".
        baselines: also evaluate raw pixels and, for runs, the same network at its initial weights.
        views: function that makes views of images for the (first) model; without it, figures of views are left out.
        seed, device: seed of the hold-out and validation splits; "auto" is the GPU where there is one.
        precision, progress: as for :func:`~ssole.evaluation.features.extract`.
        image_size, mean, std: preprocessing, by default of the model's attributes or timm's ``pretrained_cfg``. Runs in
            a dict keep their own.

    Raises:
        ConfigError, DataError: a model or data that cannot be opened, or test classes that train lacks.
        ValueError: unknown preprocessing, features that are not finite, or fewer than 10 training images for kNN.
    """
    overrides = {"image_size": image_size, "mean": mean, "std": std}
    run_overrides = {} if isinstance(model_or_run, Mapping) else overrides
    rows = _rows(model_or_run)
    open_images = partial(open_data, data, test, seed=seed, **_store_options(rows, progress))
    scoring = Scoring(open_images, protocol, views, seed, evaluation_device(device), precision, progress)
    opened = _open_all(rows, overrides, run_overrides, scoring)
    for name, models in opened.items():
        scoring.add_models(name, models)
    if baselines:
        _add_baselines(scoring, {name: rows[name] for name in opened}, next(iter(opened.values()))[0][1], run_overrides)
    return scoring.result()


Opened = list[tuple[nn.Module, Preprocessing]]
"""Models of a row of the table, each with its preprocessing."""


def _store_options(rows: Mapping[str, Sequence[ModelOrRun]], progress: bool) -> dict[str, Any]:
    """Options of stores. Processes of one machine share a cache of images, in place of holding all of them each."""
    processes = distributed.launch().local_world_size if distributed.shares_work() else 1
    most = most_unreadable(chain(*rows.values()))
    return {"progress": progress, "processes": processes, "cache": processes > 1, "max_unreadable": most}


def _rows(given: Any) -> dict[str, list[ModelOrRun]]:
    """Models and baselines to evaluate, by the name of their row."""
    if isinstance(given, Mapping):
        rows = {name: list(one) if isinstance(one, (list, tuple)) else [one] for name, one in given.items()}
    else:
        runs = list(given) if isinstance(given, (list, tuple)) else [given]
        rows = {"trained" if len(runs) == 1 else f"trained ({len(runs)} runs)": runs}
    if not rows or not all(rows.values()):
        raise ConfigError(f"there is nothing to evaluate: give a model or run for every row, got {given!r}")
    return rows


def _open_all(
    rows: Mapping[str, Sequence[ModelOrRun]], overrides: dict[str, Any], run_overrides: dict[str, Any], scoring: Scoring
) -> dict[str, Opened]:
    """Models by row, without rows whose weights cannot be had. ``run_overrides`` replace ``overrides`` for runs."""
    opened: dict[str, Opened] = {}
    for name, row in rows.items():
        try:
            opened[name] = [
                model_and_preprocessing(one, **(run_overrides if is_run(one) else overrides)) for one in row
            ]
        except UnavailableError as error:
            if len(rows) == 1:
                raise
            scoring.notes.append(f"{error}: left out.")
    if not opened:
        raise UnavailableError("none of the pretrained weights can be had here: give a run, or a file of weights")
    return opened


def _add_baselines(
    scoring: Scoring, rows: Mapping[str, Sequence[ModelOrRun]], first: Preprocessing, run_overrides: dict[str, Any]
) -> None:
    """Add raw pixels, and the untrained networks of runs: one row for all runs that began with equal networks."""
    side = min(first.image_size, RAW_PIXEL_SIZE)
    scoring.add_models(scoring.free_name(f"raw pixels ({side}x{side})"), [(None, first)])
    different: dict[str, Opened] = {}
    seen: list[Any] = []
    for name, row in rows.items():
        networks = [untrained(one) for one in row if is_run(one)]
        models: Opened = [(model, Preprocessing.from_model(model, **run_overrides)) for model in networks]
        # what decides the features of an untrained model: its description, which has the seed, and the preprocessing
        identity = [(getattr(model, "config", None), preprocessing) for model, preprocessing in models]
        if models and identity not in seen:
            seen.append(identity)
            different[name] = models
    for name, models in different.items():
        row_name = "untrained" if len(different) == 1 else f"untrained, as {name}"
        scoring.add_models(scoring.free_name(row_name), models)
    if not different:
        scoring.notes.append("No untrained row: the initial weights of a module are unknown; give its run.")
