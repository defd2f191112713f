"""Thresholds and correlations of the verdict, from the runs that `experiments/verdict.py` measured.

    python experiments/verdict_fit.py benchmarks/results/verdict.json

It prints the constants that `ssole/evaluation/verdict.py` has, and the table of docs/evaluation.md. A test compares
them.

- Correlation: Spearman's, of each label-free figure with kNN accuracy, among the runs of one data set and length; the
  mean over those groups of ten runs or more.
- Recovered: the gain in accuracy over the untrained network of the run with the best figure, as a share of the best
  run's gain; the mean over the same groups.
- A run is poor if it gains less than half of what the best run of its group gains over the untrained network.
- The two thresholds are those that tell poor runs from others with the fewest mistakes: "collapsed" above one of
  uniformity, "dimension-starved" below one of RankMe. Of equal choices the widest gap is taken, and its middle.
- A run was still improving if the same settings for four times as many steps gain two points of accuracy. Its rise of
  kNN accuracy over its last fifth says so above the largest rise of a run that was not. The correlation is that of the
  rise with the gain. Whether the share of its loss's whole fall that came in the last quarter tells more is measured
  with the best threshold, by the mean of both kinds of mistakes.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise, product
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import spearmanr

from ssole.evaluation.results import LABEL_FREE

Run = dict[str, Any]
GAIN, POINTS = 0.5, 0.02  # share of the best gain below which a run is poor; accuracy that longer training has to add
LEAST = 10  # runs of a group whose ranks are compared


def fit(report: dict[str, Any]) -> dict[str, Any]:
    """Constants of the verdict."""
    runs, untrained = report["runs"], {}
    groups: dict[tuple[str, int], list[Run]] = defaultdict(list)
    for run in runs:
        groups[run["data"], run["steps"]].append(run)
        if "untrained" in run["baselines"]:
            untrained[run["data"]] = run["baselines"]["untrained"]["knn20"]
    large = [group for group in groups.values() if len(group) >= LEAST]
    correlation = {name: float(np.mean([_rank_correlation(group, name) for group in large])) for name in LABEL_FREE}
    poor = []
    for run in runs:
        best = max(other["knn20"] for other in groups[run["data"], run["steps"]])
        start = untrained[run["data"]]
        poor.append(run["knn20"] - start < GAIN * (best - start))
    uniformity, rankme = (round(value, 2) for value in _two_thresholds(runs, poor))
    called = [run["figures"]["uniformity"] > uniformity or run["figures"]["rankme"] < rankme for run in runs]
    recovered = {
        name: float(np.mean([_recovered(group, name, correlation[name], untrained) for group in large]))
        for name in LABEL_FREE
    }
    pairs = _pairs(runs)
    falls, improved = [last_fall(run["curves"]["loss"]) for run, _ in pairs], [gain >= POINTS for _, gain in pairs]
    fall = round(_threshold(falls, improved), 3)
    risen = [(run["rise"], gain) for run, gain in pairs if "rise" in run]
    rise = max(one for one, gain in risen if gain < POINTS)
    return {
        "runs": len(runs),
        "compared": sum(map(len, large)),
        "correlation": {name: round(value, 2) for name, value in correlation.items()},
        "recovered": {name: round(value, 2) for name, value in recovered.items()},
        "collapsed_uniformity": uniformity,
        "starved_rankme": rankme,
        "poor": sum(poor),
        "missed": sum(is_poor and not call for is_poor, call in zip(poor, called, strict=True)),
        "wronged": sum(call and not is_poor for is_poor, call in zip(poor, called, strict=True)),
        "improving_rise": round(rise, 3),
        "rises": len(risen),
        "rise_correlation": _rise_correlation(pairs),
        "rises_improved": sum(gain >= POINTS for _, gain in risen),
        "rises_seen": sum(one > rise for one, _ in risen),
        "pairs": len(pairs),
        "improved": sum(improved),
        "pairs_misjudged": sum((one > fall) != truth for one, truth in zip(falls, improved, strict=True)),
    }


def _rank_correlation(group: Sequence[Run], name: str) -> float:
    measured = [run for run in group if name in run["figures"]]
    figures, truth = [run["figures"][name] for run in measured], [run["knn20"] for run in measured]
    return float(spearmanr(figures, truth).statistic)


def _rise_correlation(pairs: Sequence[tuple[Run, float]]) -> float:
    """Rank correlation of the last rise with what longer training gained, the mean over large groups."""
    groups: dict[tuple[str, int], list[tuple[float, float]]] = defaultdict(list)
    for run, gain in pairs:
        if "rise" in run:
            groups[run["data"], run["steps"]].append((run["rise"], gain))
    large = [zip(*group, strict=True) for group in groups.values() if len(group) >= LEAST]
    return round(float(np.mean([spearmanr(*columns).statistic for columns in large])), 2)


def _recovered(group: Sequence[Run], name: str, correlation: float, untrained: dict[str, float]) -> float:
    """Share of the best run's gain over the untrained network that the run with the best figure has."""
    sign = 1 if correlation > 0 else -1
    chosen = max((run for run in group if name in run["figures"]), key=lambda run: sign * run["figures"][name])
    start, top = untrained[chosen["data"]], max(run["knn20"] for run in group)
    return float((chosen["knn20"] - start) / (top - start))


def last_fall(loss: Sequence[float]) -> float:
    """Share of the fall of a curve, given by the means of its twelfths, that came in its last quarter."""
    fall = max(loss) - loss[-1]
    return min(1.0, max(0.0, (loss[8] - loss[-1]) / fall)) if fall > 0 else 0.0


def _pairs(runs: Sequence[Run]) -> list[tuple[Run, float]]:
    """Runs that were also trained for four times as many steps, with what that added to their accuracy."""
    found = {(run["data"], run["arm"], run["steps"]): run for run in runs}
    longer = [(run, found.get((run["data"], run["arm"], 4 * run["steps"]))) for run in runs]
    return [(run, other["knn20"] - run["knn20"]) for run, other in longer if other is not None]


def _two_thresholds(runs: Sequence[Run], poor: Sequence[bool]) -> tuple[float, float]:
    figures = {name: np.array([run["figures"][name] for run in runs]) for name in ("uniformity", "rankme")}
    truth = np.array(poor)

    def mistakes(uniformity: float, rankme: float) -> int:
        return int((((figures["uniformity"] > uniformity) | (figures["rankme"] < rankme)) != truth).sum())

    return _best([_middles(figures["uniformity"]), _middles(figures["rankme"])], mistakes)


def _threshold(values: Sequence[float], truth: Sequence[bool]) -> float:
    """Threshold with the smallest mean of both kinds of mistakes, as shares: far more runs were improving than not."""
    array, known = np.array(values), np.array(truth)

    def mistakes(threshold: float) -> float:
        called = array > threshold
        return float((~called[known]).mean() + called[~known].mean())

    return _best([_middles(array)], mistakes)[0]


def _middles(values: np.ndarray) -> list[tuple[float, float]]:
    """Middle and relative width of each gap between values."""
    ordered = np.unique(values)
    span = float(ordered[-1] - ordered[0])
    return [(float(a + b) / 2, float(b - a) / span) for a, b in pairwise(ordered)]


def _best(choices: Sequence[Sequence[tuple[float, float]]], mistakes: Callable[..., int]) -> tuple[float, ...]:
    """Thresholds with the fewest mistakes; of equal ones those in the widest gaps."""
    ranked = min(product(*choices), key=lambda one: (mistakes(*[m for m, _ in one]), -min(width for _, width in one)))
    return tuple(middle for middle, _ in ranked)


def main() -> None:
    found = fit(json.loads(Path(sys.argv[1]).read_text(encoding="utf-8")))
    print(json.dumps(found, indent=1))
    print("\n| Figure | Rank correlation with kNN |\n|---|---|")
    for name, value in sorted(found["correlation"].items(), key=lambda item: -abs(item[1])):
        print(f"| {name} | {value:+.2f} |")


if __name__ == "__main__":
    main()
