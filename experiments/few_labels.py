"""Accuracy with few labelled images: the features of finished runs, and kNN or a linear probe that sees some labels.

    ssole compare experiments/cifar10-4000-shipped.yaml --data D --test T --out runs/4000
    python experiments/few_labels.py runs/4000 --data D --test T --out benchmarks/results/few-labels.json

D and T are cifar10-train.parquet and cifar10-test.parquet. For each run of a comparison, kNN (k = 20) and a linear
probe learn from balanced random parts of the training images, and are scored on all test images. Parts of fewer than
10,000 images are drawn five times, for each seed anew. Runs of one seed saw the same images in the same order and have
the same parts, so differences between methods are paired by seed. Two minutes for each run on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import ssole
from ssole.config import to_dict
from ssole.evaluation.fine_tune import balanced_split
from ssole.evaluation.knn import knn_classify
from ssole.evaluation.linear import linear_probe
from ssole.runtime import environment
from ssole.training.run import Run

COUNTS = (100, 500, 1_000, 2_500, 5_000, 10_000, 50_000)
DRAWS, FEW = 5, 10_000
PROBE = 5_000  # labels of the linear probe, at most: more are what `ssole compare` measures


def features_of(run: Path, data: str) -> tuple[Tensor, Tensor]:
    """Features (N, F) and labels (N,) of labelled images."""
    found = ssole.embed(run, data)
    assert found.labels is not None
    return torch.from_numpy(found.array), torch.from_numpy(found.labels)


def accuracies(
    train: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor], count: int, *, seed: int
) -> dict[str, list[float]]:
    """Accuracies of each draw of a part of so many training images; `seed` is that of the run."""
    (features, labels), (queries, expected) = train, test
    scores: dict[str, list[float]] = {"knn20": [], "linear": []}
    for draw in range(DRAWS if count < FEW else 1):
        part = balanced_split(labels, count / len(labels), seed=DRAWS * seed + draw)
        near = knn_classify(features[part], labels[part], queries, k=(20,))[20].argmax(1)
        scores["knn20"].append(float((near == expected).double().mean()))
        if count <= PROBE:
            probe = linear_probe(features[part], labels[part])
            scores["linear"].append(float((probe.scores(queries).argmax(1) == expected).double().mean()))
    return {name: values for name, values in scores.items() if values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folders", type=Path, nargs="+", help="folders of runs, METHOD/seed-N in each")
    parser.add_argument("--data", required=True)
    parser.add_argument("--test", required=True)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows: list[dict[str, Any]] = []
    settings: dict[str, Any] = {}
    for run in sorted(run for folder in args.folders for run in folder.glob("*/seed-*") if not run.is_symlink()):
        config, seed = Run(run).config, int(run.name.removeprefix("seed-"))
        settings[run.parent.name] = {
            "steps": config.steps,
            "loss": to_dict(config.loss),
            "optim": to_dict(config.optim),
        }
        train, test = features_of(run, args.data), features_of(run, args.test)
        for count in (count for count in COUNTS if count <= len(train[1])):
            scores = accuracies(train, test, count, seed=seed)
            means = {name: statistics.fmean(values) for name, values in scores.items()}
            about = {"method": run.parent.name, "seed": seed, "labels": count}
            rows.append({**about, **means, "draws": scores})
            print(about | means, flush=True)
    report = {
        "data": Path(args.data).name,
        "methods": settings,
        "environment": environment(command=False),
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
