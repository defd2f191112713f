"""Cosines of positive pairs with a loss that sees signs and one that cannot: deviations against the views themselves.

    python experiments/signs.py --data cifar10-train.parquet --out benchmarks/results/signs.json

SSOLE as published, and with `low_rank_features="raw"`, are each trained for 300 steps of the small recipe on 10,000
images, with two views and with four. Then the cosines of all pairs of views of 1,280 images are counted. The nuclear
norm of the views themselves is the same for z and -z, so nothing asks a pair to agree in sign; that of their deviations
from their mean is smallest where they are equal. Also writes docs/img/experiments-signs.png. Ten minutes on one core.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gradients import embeddings, trained
from ssole.comparison.images import sample
from ssole.config import load
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.runtime import environment
from theory import BLUE, ORANGE, STYLE

RECIPE = Path(__file__).parent / "recipes" / "small.yaml"
PICTURE = Path(__file__).parent.parent / "docs" / "img" / "experiments-signs.png"
IMAGES, STEPS, BINS = 10_000, 300, 40
FEATURES = {"deviations": BLUE, "raw": ORANGE}


def pair_cosines(z_BVD: Tensor) -> Tensor:
    """Cosines of all pairs of views of each image, from unit embeddings."""
    views = z_BVD.shape[1]
    gram_BVV = z_BVD @ z_BVD.mT
    first, second = torch.triu_indices(views, views, offset=1)
    return gram_BVV[:, first, second].flatten()


def cosines_of(features: str, views: int, store: ImageStore) -> Tensor:
    """Cosines of positive pairs after training with features that see signs, or that do not."""
    crops = [{"count": views, "size": 24, "scale": [0.2, 1.0]}]
    changes = {"loss.low_rank_features": features, "augment.crops": crops, "steps": STEPS, "device": "cpu"}
    config = load(str(RECIPE), **changes)
    learner = trained(config, store)
    return torch.cat([pair_cosines(z_BVD) for z_BVD, _ in embeddings(config, learner, store)])


def draw(rows: list[dict[str, Any]]) -> None:
    """Write the picture."""
    import matplotlib.pyplot as plt

    with plt.rc_context(STYLE):
        figure, panels = plt.subplots(1, 2, figsize=(7.5, 2.6), sharey=True)
        for axes, views in zip(panels, (2, 4), strict=True):
            for row in (row for row in rows if row["views"] == views):
                label = {"deviations": "deviations (SSOLE)", "raw": "the views themselves"}[row["features"]]
                axes.stairs(
                    row["shares"], row["edges"], color=FEATURES[row["features"]], label=label, fill=False, lw=1.6
                )
            axes.set(
                title=f"{views} views",
                xlabel="cosine of two views of an image",
                xlim=(-1, 1),
                xticks=(-1, -0.5, 0, 0.5, 1),
            )
        panels[0].set_ylabel("share of pairs")
        panels[0].legend(loc="upper left")
        figure.savefig(PICTURE, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    rows = []
    with ImageStore(sample(open_source(args.data), IMAGES)) as store:
        for views in (2, 4):
            for features in FEATURES:
                cosines = cosines_of(features, views, store)
                counts, edges = np.histogram(cosines.numpy(), bins=BINS, range=(-1, 1))
                negative = float((cosines < 0).double().mean())
                row = {"features": features, "views": views, "mean": float(cosines.mean()), "negative": negative}
                print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
                rows.append({**row, "edges": edges.tolist(), "shares": (counts / counts.sum()).tolist()})
    report = {
        "recipe": RECIPE.name,
        "steps": STEPS,
        "images": IMAGES,
        "environment": environment(command=False),
        "rows": rows,
    }
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    draw(rows)


if __name__ == "__main__":
    main()
