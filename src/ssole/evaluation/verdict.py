"""Verdict on a network in plain words, from its label-free figures and the curve of its loss.

The thresholds come from `experiments/verdict.py`, small runs with known accuracy, by `experiments/verdict_fit.py`. All
of them had 128 features, so the verdict is a first look and no measurement: beside it stands how well the figure
followed accuracy there.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from ssole.evaluation.results import METRICS, NUMBERS

State = Literal["collapsed", "dimension-starved", "still improving", "healthy"]

RUNS = 42
"""Runs of the experiment."""
CORRELATION = {
    "centred_effective_rank": 0.28,
    "rankme": 0.38,
    "alpha_req": -0.28,
    "lidar": -0.09,
    "alignment": 0.02,
    "uniformity": -0.29,
    "neighbour_agreement": 0.44,
}
"""Rank correlation (Spearman) of each figure with kNN accuracy, among runs of one data set and length."""
COLLAPSED_UNIFORMITY = -0.54
"""Uniformity above which features are nearly equal."""
STARVED_RANKME = 47.2
"""RankMe below which features vary in too few directions; in proportion for networks of fewer than 128 features."""
_FEATURES = 128  # of the networks of the experiment
IMPROVING_FALL = 0.02
"""Share of the loss's fall in the last quarter of training above which longer training helps."""
COLLAPSED_RANK = 2.0
"""Effective rank of the centred features below which they are nearly constant, whatever else is measured."""
_LEAST_CURVE = 12  # points of a curve that can be judged


@dataclass(frozen=True)
class Verdict:
    """State of a network, and why."""

    state: State
    reason: str
    figure: str | None
    """Name of the figure that decided, in `METRICS`; None for the curve of the loss."""

    @property
    def sentence(self) -> str:
        """The verdict as shown, with the correlation that says how far to trust it."""
        text = f"{self.state}: {self.reason}"
        if self.figure is None:
            return f"{text}."
        share = CORRELATION[self.figure]
        return f"{text} (rank correlation of {METRICS[self.figure]} with kNN in {RUNS} small runs: {share:+.2f})."


def judge_figures(figures: Mapping[str, float], width: int, loss: Sequence[float] = ()) -> Verdict | None:
    """Verdict from label-free figures and, of a run, its logged losses in order; None without figures.

    - collapsed: uniformity near 0, or an effective rank of the centred features below 2.
    - dimension-starved: a low RankMe.
    - still improving: a good part of the loss's fall came in the last quarter of training.
    - healthy: none of these.

    Args:
        figures: by name, as in :func:`ssole.evaluation.label_free.label_free_figures`.
        width: number of features.
        loss: of a finished run; fewer than 12 values say nothing.
    """
    rank, uniformity, rankme = (figures.get(name) for name in ("centred_effective_rank", "uniformity", "rankme"))
    if rank is not None and rank < COLLAPSED_RANK:
        shown = _shown("centred_effective_rank", rank)
        return Verdict(
            "collapsed", f"{shown}: all images look nearly the same to the network", "centred_effective_rank"
        )
    if uniformity is not None and uniformity > COLLAPSED_UNIFORMITY:
        shown = _shown("uniformity", uniformity)
        return Verdict("collapsed", f"{shown}: all features point in nearly one direction", "uniformity")
    if rankme is None:
        return None
    if rankme < STARVED_RANKME * min(1, width / _FEATURES):
        reason = f"{_shown('rankme', rankme)}: the {width} features vary in few directions"
        return Verdict("dimension-starved", reason, "rankme")
    fall = last_fall(loss) if len(loss) >= _LEAST_CURVE else 0.0
    if fall > IMPROVING_FALL:
        reason = f"{100 * fall:.0f} % of the loss's fall came in the last quarter of training, so longer may help"
        return Verdict("still improving", reason, None)
    return Verdict("healthy", f"{_shown('rankme', rankme)}: the {width} features vary in many directions", "rankme")


def last_fall(loss: Sequence[float]) -> float:
    """Share of the fall of a curve that came in its last quarter, in [0, 1]; 0 for a curve that does not fall.

    The curve is taken as means over its twelfths, since single values are noisy.
    """
    twelfths = [float(np.mean(part)) for part in np.array_split(np.asarray(loss, dtype=np.float64), 12)]
    fall = max(twelfths) - twelfths[-1]
    return min(1.0, max(0.0, (twelfths[8] - twelfths[-1]) / fall)) if fall > 0 else 0.0


def _shown(name: str, value: float) -> str:
    return f"{METRICS[name]} is {value:.{NUMBERS[name]}f}"
