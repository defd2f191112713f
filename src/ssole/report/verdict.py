"""Verdict on a run in one sentence, and the three numbers that support it."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

from ssole.evaluation import verdict as unlabelled
from ssole.evaluation.label_free import centred_effective_rank, label_free_figures
from ssole.evaluation.results import METRICS, Score
from ssole.report.record import Record
from ssole.report.sample import RunSample

Level = Literal["good", "look", "bad"]

_RANK = "centred_effective_rank"  # below its limit, features are nearly constant, and accuracy is that of chance
_ERRORS = 2.0  # standard errors of a difference that chance does not explain


@dataclass(frozen=True)
class Figure:
    """Number on top of the page."""

    value: str
    name: str
    note: str


@dataclass(frozen=True)
class Verdict:
    """Verdict on a run."""

    level: Level
    sentence: str
    figures: list[Figure]
    label_free: str = ""
    """What the label-free figures say; empty without images."""


def assess(record: Record, sample: RunSample | None, broken: str = "") -> Verdict:
    """Verdict on a run, from its evaluation, its sample and its metrics, whichever there are.

    - bad: the network is `broken`, for the reason given; the features have collapsed, by
      :func:`ssole.evaluation.verdict.assess`; or accuracy is below the best baseline.
    - look: the run is not finished, accuracy is within two standard errors of the best baseline, or nothing but
      label-free figures is known.
    - good: accuracy is above the best baseline by more than two standard errors.
    """
    measured = {} if sample is None else label_free_figures(sample.train.after)
    rank = measured.get(_RANK)
    compared = _compare(record)
    figures = _figures(compared, record, sample, rank)
    if not record.finished:
        text = f"Not finished: {record.steps:,} steps so far. Wait for its end; if it was interrupted, resume it."
        return Verdict("look", text, figures)
    if broken:
        return Verdict("bad", f"It did not work: {broken}.", figures)
    state, rise = None, unlabelled.last_rise(record.metrics)
    if sample is not None:
        state = unlabelled.assess(measured, sample.train.after.shape[1], len(sample.train.after), rise)
    said = "" if state is None else state.sentence
    if state is not None and state.state == "collapsed" and (compared is None or state.figure == _RANK):
        return Verdict("bad", f"{said[0].upper()}{said[1:]}", figures)
    if compared is None:
        return Verdict("look", _without_labels(sample), figures, said)
    metric, trained, name, baseline = compared
    error = math.hypot(trained.std or 0.0, baseline.std or 0.0)
    gap, heading = trained.value - baseline.value, METRICS[metric]
    against = f"{heading} {100 * trained.value:.1f} %, against {100 * baseline.value:.1f} % for {name}"
    if gap > _ERRORS * error:
        still = rise > unlabelled.IMPROVING_RISE
        rising = " It was still rising at the end: longer training may help." if still else ""
        return Verdict("good", f"It worked: {against}.{rising}", figures, said)
    if gap < -_ERRORS * error:
        return Verdict("bad", f"It did not work: {against}.", figures, said)
    text = f"No gain over the best baseline: {against}, a difference that chance explains."
    return Verdict("look", text, figures, said)


def _compare(record: Record) -> tuple[str, Score, str, Score] | None:
    """Metric, score of the run, and name and score of the best baseline; None without an evaluation on labels."""
    rows = record.evaluation.rows if record.evaluation is not None else {}
    trained = next((scores for name, scores in rows.items() if name.startswith("trained")), {})
    metric = next((name for name in ("knn20", "linear") if name in trained), None)
    others = {} if metric is None else {n: s[metric] for n, s in rows.items() if s is not trained and metric in s}
    if metric is None or not others:
        return None
    name = max(others, key=lambda row: others[row].value)
    return metric, trained[metric], name, others[name]


def _without_labels(sample: RunSample | None) -> str:
    if sample is None:
        return "Finished, but nothing here says how good the features are: run ssole eval, or give the images."
    after, before = sample.agreement
    seen = f"a second view of an image finds its own first view in {100 * after:.0f} % of cases"
    seen += f" (untrained: {100 * before:.0f} %)"
    if after > before:
        return f"Not collapsed, and {seen}. Whether that suits your task, only labels can say: run ssole eval."
    return f"Doubtful: {seen}. Training taught the network nothing about which views belong together."


def _figures(
    compared: tuple[str, Score, str, Score] | None, record: Record, sample: RunSample | None, rank: float | None
) -> list[Figure]:
    found = []
    if compared is not None:
        metric, trained, name, baseline = compared
        gap = 100 * (trained.value - baseline.value)
        note = f"{gap:+.1f} points against {name} ({100 * baseline.value:.1f} %)"
        found.append(Figure(f"{100 * trained.value:.1f} %", f"accuracy, {METRICS[metric]}", note))
    if rank is not None and sample is not None:
        width = sample.train.after.shape[1]
        before = centred_effective_rank(sample.train.before)
        found.append(Figure(f"{rank:.0f}", f"effective rank of {width} features", f"untrained: {before:.0f}"))
        after, untrained = sample.agreement
        note = f"of second views find their own image; untrained: {100 * untrained:.0f} %"
        found.append(Figure(f"{100 * after:.0f} %", "views matched", note))
    for key, name in (("loss", "last loss"), ("effective_rank", "effective rank of the last batch")):
        values = record.series(key)[1]
        if values and len(found) < 3:
            found.append(Figure(f"{values[-1]:.3g}", name, f"at the start: {values[0]:.3g}"))
    return found
