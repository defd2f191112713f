"""What `--init` gives with few images: half the classes of CIFAR-10 first, then a few images of the others.

    python experiments/init.py --data cifar10-train.parquet --test cifar10-test.parquet --out result.json

A small ResNet learns from 10,000 images of classes 0 to 4. Then runs of little time learn from 1,000 images of classes
5 to 9: from these weights, with and without a frozen stem and first stage, or from nothing. All settings but the
initial weights are equal, and so are images, views and their order. Each is judged by the accuracy of kNN (k = 20,
cosine) on 1,000 test images of classes 5 to 9, by the features of its 1,000 training images. `steps` 0 is the first run
itself, and the network untrained. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import ssole
from ssole.config import load
from ssole.data.decode import decode
from ssole.data.sources import open_source
from ssole.models.load import LoadedBackbone
from ssole.runtime import environment

FIRST, SECOND = range(5), range(5, 10)
SEEDS = (0, 1, 2)
SETTINGS: dict[str, Any] = {
    "batch_size": 64,
    "views": 2,
    "compile": "never",
    "model.backbone_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128], "zero_init_last": False},
    "model.projector_dim": 128,
    "model.projector_hidden": 256,
}
FROZEN = {"model.frozen_stages": 1}


def part(data: str, classes: range, count: int) -> tuple[NDArray[np.uint8], NDArray[np.int64]]:
    """The first images (N, 32, 32, 3) of some classes, and their labels."""
    source = open_source(data)
    assert source.labels is not None
    chosen = [i for i, label in enumerate(source.labels) if label in classes][:count]
    images = [decode(source.read(i), where=source.id(i)).permute(1, 2, 0).numpy() for i in chosen]
    return np.stack(images), source.labels[chosen]


def accuracy(model: LoadedBackbone, train: tuple[Any, Any], test: tuple[Any, Any]) -> float:
    """Accuracy of kNN on features, in percent."""
    from sklearn.neighbors import KNeighborsClassifier

    features = [ssole.embed(model, images, progress=False).array for images, _ in (train, test)]
    classifier = KNeighborsClassifier(20, metric="cosine").fit(features[0], train[1])
    return 100 * float(classifier.score(features[1], test[1]))


def figures(values: list[float]) -> dict[str, Any]:
    """Mean, standard deviation and number of seeds."""
    return {"mean": statistics.mean(values), "std": statistics.stdev(values), "n": len(values), "values": values}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="training images of CIFAR-10")
    parser.add_argument("--test", required=True, help="test images of CIFAR-10")
    parser.add_argument("--first-steps", type=int, default=300)
    parser.add_argument("--steps", type=int, nargs="+", default=[40, 160])
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    begin = time.monotonic()
    source, _ = part(args.data, FIRST, 10_000)
    train, test = part(args.data, SECOND, 1000), part(args.test, SECOND, 1000)
    with tempfile.TemporaryDirectory() as folder:

        def pretrain(images: NDArray[np.uint8], name: str, **given: Any) -> ssole.Run:
            out = Path(folder, name)
            return ssole.pretrain(images, recipe="small-images", out=out, progress=False, **SETTINGS, **given)

        first = pretrain(source, "first", steps=args.first_steps, seed=10)
        found: dict[str, dict[str, Any]] = {
            "0": {
                "init": {"mean": accuracy(ssole.load(first), train, test), "n": 1},
                "nothing": {"mean": accuracy(ssole.untrained(first), train, test), "n": 1},
            }
        }
        for steps in args.steps:
            arms: dict[str, dict[str, Any]] = {
                "nothing": {},
                "init": {"init": first},
                "frozen": {"init": first, **FROZEN},
            }
            for arm, given in arms.items():
                runs = [pretrain(train[0], f"{arm}-{steps}-{s}", steps=steps, seed=s, **given) for s in SEEDS]
                found.setdefault(str(steps), {})[arm] = figures([accuracy(ssole.load(r), train, test) for r in runs])
                print(steps, arm, found[str(steps)][arm], flush=True)
    facts = {
        "environment": environment(command=False),
        "minutes": round((time.monotonic() - begin) / 60, 1),
        "first_steps": args.first_steps,
        "settings": {**SETTINGS, "recipe": "small-images", "optim": load("small-images").optim.name},
        "frozen": FROZEN,
        "knn20_by_steps": found,
    }
    args.out.write_text(json.dumps(facts, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
