"""`evaluate`: figures of frozen models by chosen protocols, beside raw pixels and the untrained network."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import nn

from ssole import distributed
from ssole.config import ConfigError
from ssole.data.base import Spec
from ssole.evaluation.case import Case
from ssole.evaluation.datasets import EvaluationData, open_data
from ssole.evaluation.features import RAW_PIXEL_SIZE, Views, adapted_views, evaluation_device
from ssole.evaluation.models import (
    ModelOrRun,
    UnavailableError,
    is_run,
    model_and_preprocessing,
    most_unreadable,
)
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.protocols import PROTOCOLS, chosen_protocols
from ssole.evaluation.results import METRICS, EvaluationResult, Outcome, Score
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
