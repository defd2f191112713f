"""Time of kNN and of the linear probe beside scikit-learn's, on synthetic features of the size of CIFAR-10.

    python benchmarks/probe.py            # 50,000 train and 10,000 test features of 512 dimensions, 2 threads
    python benchmarks/probe.py --small    # a tenth of that, for a quick look

Runs of the two libraries alternate, so that a disturbance slows both. Medians are shown, and at full size saved to
benchmarks/results/probe.json.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from threadpoolctl import threadpool_limits

from measure import save, take_turns
from ssole.evaluation.accuracy import accuracy
from ssole.evaluation.knn import knn_classify
from ssole.evaluation.linear import C_GRID, linear_probe

RESULTS = Path(__file__).parent / "results" / "probe.json"


def synthetic(n: int, f: int = 512, classes: int = 10) -> tuple[torch.Tensor, torch.Tensor]:
    """Features like a trained network's: rectified, correlated, with a power-law spectrum and overlapping classes."""
    generator = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    labels = torch.randint(classes, (n,), generator=generator)
    spectrum = torch.arange(1, f + 1).float() ** -0.8
    signal = 0.35 * normal(classes, f)[labels] * spectrum * (torch.arange(f) < 64)
    rotation = torch.linalg.qr(normal(f, f)).Q
    return torch.relu(10 * (signal + normal(n, f) * spectrum) @ rotation + 0.3), labels


def interleaved(runs: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Median seconds and the last result of each function, called in turn."""
    outcome = {}

    def seconds(name: str) -> float:
        begun = time.perf_counter()
        outcome[name] = runs[name]()
        return time.perf_counter() - begun

    times = take_turns({name: partial(seconds, name) for name in runs}, repeats)
    return {name: statistics.median(each) for name, each in times.items()}, outcome


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="a tenth of the images")
    parser.add_argument("--threads", type=int, default=2, help="threads of each library; default 2")
    parser.add_argument("--repeats", type=int, default=3)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    n, q = (5_000, 1_000) if options.small else (50_000, 10_000)
    features, labels = synthetic(n + q)
    x, y, test, truth = features[:n], labels[:n], features[n:], labels[n:]
    standard = (x - x.mean(0)) / x.std(0)
    standard_test = (test - x.mean(0)) / x.std(0)

    def share(predictions: Any) -> float:
        return float((torch.as_tensor(predictions) == truth).float().mean())

    def their_knn() -> float:
        weights = lambda distance: np.exp((1 - distance) / 0.07)  # noqa: E731
        model = KNeighborsClassifier(20, metric="cosine", weights=weights, n_jobs=options.threads).fit(
            x.numpy(), y.numpy()
        )
        return share(model.predict(test.numpy()))

    def their_fit() -> tuple[float, bool]:
        model = LogisticRegression(C=0.01, tol=1e-4, max_iter=1000).fit(standard.numpy(), y.numpy())
        return share(model.predict(standard_test.numpy())), bool(model.n_iter_[0] < 1000)

    def our_fit(c: Any) -> tuple[float, bool, float, int]:
        probe = linear_probe(x, y, c=c)
        return accuracy(probe.scores(test), truth), probe.converged, probe.c, probe.iterations

    knn_runs = {"ssole": lambda: accuracy(knn_classify(x, y, test)[20], truth), "scikit-learn": their_knn}
    linear_runs = {"ssole": lambda: our_fit(0.01), "scikit-learn": their_fit}
    with warnings.catch_warnings(), threadpool_limits(options.threads):
        warnings.simplefilter("ignore")
        knn_times, knn_outcome = interleaved(knn_runs, options.repeats)
        fit_times, fit_outcome = interleaved(linear_runs, options.repeats)
        sweep_times, sweep_outcome = interleaved({"ssole": lambda: our_fit(C_GRID)}, options.repeats)
    row = {
        "shape": [n, q, features.shape[1], 10],
        "repeats": options.repeats,
        "knn": {"seconds": knn_times, "accuracy": knn_outcome},
        "linear, one C": {"seconds": fit_times, "outcome": fit_outcome},
        f"linear, {len(C_GRID)} values of C and refit": {"seconds": sweep_times, "outcome": sweep_outcome},
    }
    for name in list(row)[-3:]:
        times: dict[str, float] = row[name]["seconds"]
        other = times.get("scikit-learn")
        ratio = f"   scikit-learn {other:7.2f} s   {other / times['ssole']:.1f}x" if other else ""
        print(f"{name:36s} ssole {times['ssole']:6.2f} s{ratio}")
        print("    ", {key: value for key, value in row[name].items() if key != "seconds"})
    if not options.small:
        save(RESULTS, row, packages=["scikit-learn"])


if __name__ == "__main__":
    main()
