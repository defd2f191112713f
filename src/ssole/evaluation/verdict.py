"""Verdict on a network in plain words, from its label-free figures and, where it was measured, the curve of accuracy.

The thresholds come from `experiments/verdict.py`, small runs with known accuracy, by `experiments/verdict_fit.py`. All
of them had 128 features, so the verdict is a first look and no measurement: beside it stands how well the figure
followed accuracy there.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ssole.evaluation.results import DECIMALS, METRICS

State = Literal["collapsed", "dimension-starved", "still improving", "healthy", "no verdict"]

COMPARED = 88
"""Number of runs behind `CORRELATION`: those of data sets and run lengths that have ten runs or more."""
CORRELATION = {
    "centred_effective_rank": 0.38,
    "rankme": 0.35,
    "alpha_req": -0.35,
    "lidar": 0.16,
    "alignment": 0.03,
    "uniformity": -0.23,
    "neighbour_agreement": 0.45,
}
"""Rank correlation (Spearman) of each figure with kNN accuracy, among runs of one data set and length."""
COLLAPSED_UNIFORMITY = -0.54
"""Uniformity above which features are nearly equal."""
STARVED_RANKME = 40.25
"""RankMe below which features vary in too few directions; in proportion for networks of fewer than 128 features."""
_FEATURES = 128  # of the networks of the experiment
IMPROVING_RISE = 0.024
"""Rise of kNN accuracy over the last fifth of training above which longer training may help: the largest among runs
that gained less than two points when they were repeated with four times as many steps."""
RISES = 44
"""Number of runs that were repeated with four times as many steps."""
RISE_CORRELATION = -0.2
"""Rank correlation (Spearman) of the rise with what the repetition in four times as many steps gained."""
COLLAPSED_RANK = 2.0
"""Effective rank of the centred features below which they are nearly constant, whatever else is measured."""


@dataclass(frozen=True)
class Verdict:
    """State of a network, and why."""

    state: State
    reason: str
    figure: str | None
    """Name of the figure that decided, in `METRICS`; None for the curve of accuracy and for no verdict."""

    @property
    def sentence(self) -> str:
        """The verdict as shown, with the correlation that says how far to trust it."""
        text = f"{self.state}: {self.reason}"
        if self.state == "no verdict":
            return f"{text}."
        if self.figure is None:
            against = f"this rise with the gain from four times as many steps, in {RISES} small runs"
            return f"{text} (rank correlation of {against}: {RISE_CORRELATION:+.2f})."
        trust = CORRELATION[self.figure]
        return f"{text} (rank correlation of {METRICS[self.figure]} with kNN in {COMPARED} small runs: {trust:+.2f})."


def assess(figures: Mapping[str, float], width: int, images: int, rise: float = 0.0) -> Verdict | None:
    """Verdict from label-free figures and, of a run that measured it, the last rise of its accuracy.

    The first of these that applies:

    - collapsed: uniformity near 0, or an effective rank of the centred features below 2.
    - no verdict: fewer images than the limit on RankMe, which cannot exceed their number.
    - dimension-starved: a low RankMe.
    - still improving: kNN accuracy rose by more than `IMPROVING_RISE` over the last fifth of training.
    - healthy: none of these.

    ``figures`` are by name, as in :func:`ssole.evaluation.label_free.label_free_figures`, ``width`` is the number of
    features, ``images`` that of the images behind the figures, and ``rise`` that of :func:`last_rise`. The effective
    rank of centred features is at most one less than ``images``, and counts only where it can exceed its limit. None
    without RankMe, unless the features have collapsed.
    """

    def by(name: str, state: State, words: str) -> Verdict:
        return Verdict(state, f"{METRICS[name]} is {figures[name]:.{DECIMALS[name]}f}: {words}", name)

    if images - 1 > COLLAPSED_RANK and figures.get("centred_effective_rank", math.inf) < COLLAPSED_RANK:
        return by("centred_effective_rank", "collapsed", "all images look nearly the same to the network")
    if figures.get("uniformity", -math.inf) > COLLAPSED_UNIFORMITY:
        return by("uniformity", "collapsed", "all features point in nearly one direction")
    if "rankme" not in figures:
        return None
    starved = STARVED_RANKME * min(1, width / _FEATURES)
    if images < starved:
        few = f"the figures are of {images} image{'s' * (images > 1)}, and RankMe cannot exceed their number"
        return Verdict("no verdict", f"{few}; give at least {math.ceil(starved)}", None)
    if figures["rankme"] < starved:
        return by("rankme", "dimension-starved", f"the {width} features vary in few directions")
    if rise > IMPROVING_RISE:
        reason = f"kNN accuracy rose by {100 * rise:.1f} points over the last fifth of training, so longer may help"
        return Verdict("still improving", reason, None)
    return by("rankme", "healthy", f"the {width} features vary in many directions")


def last_rise(metrics: Sequence[Mapping[str, Any]]) -> float:
    """Rise of kNN accuracy over the last fifth of a run's steps, by its metrics; 0 if it was not measured before."""
    last = max((row["step"] for row in metrics), default=0)
    known = [row for row in metrics if isinstance(row.get("knn20"), float)]
    earlier = [row["knn20"] for row in known if row["step"] <= 0.8 * last]
    return float(known[-1]["knn20"] - earlier[-1]) if earlier else 0.0
