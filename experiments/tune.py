"""How much of what labels would have chosen `ssole tune` finds without them.

    python experiments/tune.py --data cifar10=cifar10-train.parquet --data digits-m=digits-m

For each data set, `ssole.tune` runs its search on 4,000 images, with the small network and the settings of
`experiments/verdict.py` as the recipe to begin with. Then every trial is also measured with labels: kNN (k = 20) on
4,000 other images, with those that were trained on as its memory. Labels take no part in the choice.

- Share: what the choice without labels gains over the recipe (trial 0) in accuracy, as a share of what the best trial
  gains; over several data sets or seeds, of the sums. Below 0 the choice is worse than the recipe. "Random" is the mean
  of all trials instead of the choice.
- Correlation: Spearman's, of the figure with the accuracy over the trials. Figures that are better when lower have
  their sign turned.

Both are written for the figure that `ssole tune` judges by and for the others, among all trials and among the first 8,
which are the default. Trials that failed take no part. A search that is in the result is not repeated. It takes a
quarter of an hour on one core.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any

from scipy.stats import spearmanr

import ssole
from ssole.comparison.tune import FIGURE
from ssole.data.arrays import ArraySource
from ssole.evaluation.verdict import CORRELATION
from ssole.runtime import environment
from verdict import BASE, DIGITS, flat, two_parts

DEFAULT = 8  # trials of `ssole tune`


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=DATA", help="labelled images")
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=300, help="of each trial")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1])
    parser.add_argument("--images", type=int, default=4000, help="to train on, and as many to test on")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    report: dict[str, Any] = json.loads(args.out.read_text("utf-8")) if args.out.is_file() else {"searches": []}
    report["command"] = "python experiments/tune.py " + " ".join(f"--data {one.split('=')[0]}=..." for one in args.data)
    report["environment"] = environment(command=False)
    report["settings"] = {"base": BASE, "digits-m": DIGITS, "steps": args.steps, "images": args.images}
    sets = [two_parts(*item.split("=", 1), args.images, args.images) for item in args.data]
    for seed, (train, test) in product(args.seeds, sets):
        if not any((one["data"], one["seed"]) == (test.name, seed) for one in report["searches"]):
            report["searches"].append(measure(train, test, args.trials, args.steps, seed))
            counts = sorted({min(DEFAULT, args.trials), args.trials})
            report["result"] = {f"{count} trials": result(report["searches"], count) for count in counts}
            args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(report["result"], indent=1))


def measure(train: ArraySource, test: ArraySource, trials: int, steps: int, seed: int) -> dict[str, Any]:
    """A search, and its trials' label-free figures and accuracies."""
    begin = time.perf_counter()
    augment = {f"augment.{key}": value for key, value in DIGITS.items()} if test.name == "digits-m" else {}
    how: dict[str, Any] = {"device": "cpu", "progress": False}
    with tempfile.TemporaryDirectory() as folder:
        found = ssole.tune(
            train, recipe="digits-m", budget=f"{trials * steps}steps", trials=trials, out=Path(folder, "tune"),
            seed=seed, **how, **(flat(BASE) | augment),
        )  # fmt: skip
        records: list[dict[str, Any]] = []
        baselines: dict[str, float] = {}
        for number, trial in enumerate(found.trials):
            record = {"settings": trial.settings, "figures": trial.scores, "error": trial.error}
            if trial.error is None:
                run = Path(folder, "tune", f"trial-{number}")
                rows = ssole.evaluate(run, train, test=test, protocol="knn", baselines=not baselines, **how).rows
                record["knn20"] = rows.pop("trained")["knn20"].value
                baselines = baselines or {row: scores["knn20"].value for row, scores in rows.items()}
            records.append(record)
    return {
        "data": test.name,
        "seed": seed,
        "chosen": found.chosen,
        "trials": records,
        "baselines": baselines,
        "seconds": round(time.perf_counter() - begin, 1),
    }


def result(searches: Sequence[dict[str, Any]], count: int) -> dict[str, Any]:
    """Shares and correlations of each data set and of all of them together, among the first trials."""
    names = dict.fromkeys(one["data"] for one in searches)
    trials = [[trial for trial in one["trials"][:count] if trial["error"] is None] for one in searches]
    groups = {name: [own for own, one in zip(trials, searches, strict=True) if one["data"] == name] for name in names}
    groups["all"] = trials
    return {name: {"judged by": FIGURE, **summary(groups[name])} for name in groups}


def summary(searches: Sequence[Sequence[dict[str, Any]]]) -> dict[str, Any]:
    """Accuracies, shares and correlations over searches of equal trials. A share is None where no trial is better."""
    accuracies = [[trial["knn20"] for trial in trials] for trials in searches]
    possible = sum(max(values) - values[0] for values in accuracies)

    def share(chosen: Sequence[float]) -> float | None:
        gained = sum(value - values[0] for value, values in zip(chosen, accuracies, strict=True))
        return gained / possible if possible else None

    def mean(values: Sequence[float]) -> float:
        return sum(values) / len(values)

    figures = {}
    for name, correlation in CORRELATION.items():
        sign = 1 if correlation > 0 else -1
        scores = [[sign * trial["figures"][name] for trial in trials] for trials in searches]
        chosen = [values[score.index(max(score))] for values, score in zip(accuracies, scores, strict=True)]
        ranks = [spearmanr(score, values).statistic for score, values in zip(scores, accuracies, strict=True)]
        figures[name] = {"share": share(chosen), "knn20": mean(chosen), "correlation": float(mean(ranks))}
    return {
        "recipe": mean([values[0] for values in accuracies]),
        "best": mean([max(values) for values in accuracies]),
        "random": {"share": share([mean(values) for values in accuracies])},
        "figures": figures,
    }


if __name__ == "__main__":
    main()
