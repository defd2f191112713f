"""Transfer: one protocol on several data sets, a column of the table each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike
from pathlib import Path
from typing import Any

from ssole.config import ConfigError
from ssole.data.base import Spec
from ssole.errors import DataError, distinct, without_secrets
from ssole.evaluation.evaluate import evaluate
from ssole.evaluation.models import ModelOrRun
from ssole.evaluation.results import METRICS, EvaluationResult, Score


def transfer(
    model_or_run: ModelOrRun | Sequence[ModelOrRun] | Mapping[str, Any],
    data: str | Sequence[str | PathLike[str]] | Mapping[str, Spec],
    *,
    protocol: str = "linear",
    **options: Any,
) -> EvaluationResult:
    """Accuracy on each of several labelled data sets, beside raw pixels and the untrained network.

    The usual test of general features: a classifier is trained on each data set (Kornblith et al. 2019,
    arXiv:1805.08974, with the linear probe as here). A data set that cannot be had is left out, and a note says why.

    Args:
        model_or_run: as for :func:`ssole.evaluate`.
        data: names or paths of data sets, or data sets by the name of their column.
        protocol: one with labels; the column has its first figure, if there is one for the row.
        options: of :func:`ssole.evaluate`, without ``test``.

    Raises:
        ConfigError: there are no data sets, or a model that cannot be opened.
        DataError: none of the data sets can be had.
        ValueError: as for :func:`ssole.evaluate`.
    """
    sets: dict[str, Any] = dict(data) if isinstance(data, Mapping) else _by_name(data)
    if not sets:
        raise ConfigError("transfer needs data sets to transfer to, got none")
    rows: dict[str, dict[str, Score]] = {}
    found, notes = [], []
    for name, spec in sets.items():
        try:
            result = evaluate(model_or_run, spec, protocol=protocol, **options)
            if result.test is None:
                raise DataError("it has no labels")
        except DataError as error:
            notes.append(f"{name} is left out: {str(error).rstrip('.')}.")
            continue
        found.append(result)
        notes += [f"{name}: {note}" for note in result.notes]
        for row, scores in result.rows.items():
            first = list(scores.items())[:1]
            rows.setdefault(row, {}).update({f"{name}, {METRICS[metric]}": score for metric, score in first})
    if not found:
        raise DataError(f"none of the data sets can be had. {' '.join(notes)}")
    return EvaluationResult(
        rows=rows,
        train="; ".join(result.train for result in found),
        test="; ".join(str(result.test) for result in found),
        notes=notes,
        protocols=found[0].protocols,
    )


def _by_name(data: str | Sequence[str | PathLike[str]]) -> dict[str, str | PathLike[str]]:
    """Data sets by the last part of their path, or by the whole path where several end alike."""
    given = [data] if isinstance(data, str) else data
    paths = [without_secrets(str(one)) for one in given]
    return dict(zip(distinct([Path(path).name or path for path in paths], paths), given, strict=True))
