"""Where the gradients of losses go: which pairs of images each of them pushes apart, at the same embeddings.

    python experiments/gradients.py --data cifar10-train.parquet --steps 300 --out benchmarks/results/gradients.json

An encoder is trained for some steps with the recipe's loss. Then every loss is differentiated at the same embeddings of
batches of training images. All of these losses see only cosines, so the gradient with respect to the embeddings Z of
all views is A Z with a symmetric A, whose entry is the push (above 0) or pull (below 0) between two views. The labels,
which no loss sees, tell how much of the push is between images of one class.

Columns: the share of the push that is between images of one class (0.1 if it were blind), the share on the closest
hundredth of all pairs, and the correlation between the length of an image's gradient and the share of other classes
among its five nearest neighbours in the batch.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ssole import SSOLELoss, make_views
from ssole.config import PretrainConfig, load
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.losses.simclr import SimCLRLoss
from ssole.runtime import environment
from ssole.training.feed import Feed, make_plan
from ssole.training.optim import learning_rate
from ssole.training.step import Learner

BATCH, BATCHES, NEIGHBOURS = 64, 20, 5
LOSSES: dict[str, nn.Module] = {
    "SSOLE, lambda 1.5": SSOLELoss(1.5),
    "SSOLE, lambda 10, temperature 0.5": SSOLELoss(10.0, temperature=0.5),
    "SSOLE, lambda 10, temperature 0.2": SSOLELoss(10.0, temperature=0.2),
    "SSOLE, lambda 10, temperature 0.1": SSOLELoss(10.0, temperature=0.1),
    "SimCLR, temperature 0.5": SimCLRLoss(temperature=0.5),
    "SimCLR, temperature 0.2": SimCLRLoss(temperature=0.2),
    "SimCLR, temperature 0.1": SimCLRLoss(temperature=0.1),
    "SimCLR, temperature 0.07": SimCLRLoss(temperature=0.07),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--recipe", default="cifar10-cpu")
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    config = load(args.recipe, steps=args.steps, device="cpu", compile="never")
    with ImageStore(open_source(args.data)) as store:
        learner = trained(config, store)
        batches = list(embeddings(config, learner, store))
    rows = {name: figures(loss, batches) for name, loss in LOSSES.items()}
    report = {"steps": args.steps, "recipe": args.recipe, "environment": environment(), "losses": rows}
    args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    for name, row in rows.items():
        print(f"{name:36}" + "  ".join(f"{key} {value:.3f}" for key, value in row.items()))


def trained(config: PretrainConfig, store: ImageStore) -> Learner:
    """Learner after the steps of the config."""
    learner, plan = Learner(config, torch.device("cpu")), make_plan(config, len(store))
    for step, epoch, ids, images in Feed(store, torch.device("cpu")).batches(plan, 0):
        learner.step(images, ids, epoch=epoch, lr=learning_rate(step, plan.total, config.optim))
    return learner


def embeddings(config: PretrainConfig, learner: Learner, store: ImageStore) -> Iterator[tuple[Tensor, Tensor]]:
    """Unit embeddings (B, V, D) in float64 of views, and labels (B,), for batches of images drawn at random."""
    assert store.labels is not None
    order = torch.from_numpy(np.random.default_rng(0).permutation(len(store))[: BATCH * BATCHES])
    for ids in order.split(BATCH):
        views = make_views(store.get(ids), ids, recipe=config.augment, seed=1, epoch=0)
        with torch.no_grad():
            z_BVD = learner.embedder(views)
        yield nn.functional.normalize(z_BVD.double(), dim=-1), torch.from_numpy(store.labels)[ids]


def figures(loss: nn.Module, batches: list[tuple[Tensor, Tensor]]) -> dict[str, float]:
    """Means over batches of the three figures."""
    rows: list[dict[str, float]] = []
    for z_BVD, labels_B in batches:
        leaf = z_BVD.clone().requires_grad_()
        (gradient_BVD,) = torch.autograd.grad(loss(leaf), leaf)
        push_BB, lengths_B = pushes(z_BVD, gradient_BVD), gradient_BVD.flatten(1).norm(dim=1)
        rows.append(one_batch(push_BB, lengths_B, z_BVD.mean(1), labels_B))
    return {name: float(np.mean([row[name] for row in rows])) for name in rows[0]}


def pushes(z_BVD: Tensor, gradient_BVD: Tensor) -> Tensor:
    """Push (B, B) between images: entries above 0 of the symmetric A with gradient A Z, summed over their views."""
    images, views, _ = z_BVD.shape
    # A Z is known up to multiples of Z itself, which normalization removes: these are on the diagonal, left out here.
    a_NN: Tensor = gradient_BVD.flatten(0, 1) @ torch.linalg.pinv(z_BVD.flatten(0, 1))
    between = a_NN.clamp(min=0).view(images, views, images, views).sum((1, 3))
    between.fill_diagonal_(0)
    return between


def one_batch(push_BB: Tensor, lengths_B: Tensor, centre_BD: Tensor, labels_B: Tensor) -> dict[str, Any]:
    """Figures of one batch."""
    cosine_BB = nn.functional.normalize(centre_BD, dim=-1) @ nn.functional.normalize(centre_BD, dim=-1).T
    cosine_BB.fill_diagonal_(-2)
    same_BB = labels_B[:, None] == labels_B
    closest = cosine_BB.flatten().topk(len(labels_B) ** 2 // 100).indices
    nearest_BK = cosine_BB.topk(NEIGHBOURS).indices
    wrong_B = (labels_B[nearest_BK] != labels_B[:, None]).double().mean(1)
    return {
        "push within a class": float((push_BB * same_BB).sum() / push_BB.sum()),
        "push on the closest 1 %": float(push_BB.flatten()[closest].sum() / push_BB.sum()),
        "length and wrong neighbours": float(torch.corrcoef(torch.stack([lengths_B, wrong_B]))[0, 1]),
    }


if __name__ == "__main__":
    main()
