"""Lambda and gamma that change in the course of training, and embeddings that are centred first: does either help?

    python experiments/schedules.py --data cifar10-train.parquet --test cifar10-test.parquet --out runs/schedules

SSOLE as the larger recipes had it then, on the small recipe: 300 steps on 10,000 images, three paired seeds. lambda
falls from 8 to 2 (spread first, align later), or rises from 2 to 8 or from 1 to 12; gamma falls from 1 to 0 or rises;
or each view's mean over the batch is taken away from its embeddings before both terms. 24 runs, an hour on one core of
an EPYC (Zen 3).
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from torch import Tensor

import ssole

STEPS = 300
RECIPE = Path(__file__).parent / "recipes" / "small.yaml"
SHIPPED: dict[str, Any] = {"high_rank_weight": 4.0, "temperature": 0.5, "low_rank_norm": "frobenius"}


class Scheduled(ssole.SSOLELoss):
    """SSOLE with one argument that goes from `first` to `last` in equal steps."""

    calls: Tensor

    def __init__(self, name: str, first: float, last: float) -> None:
        super().__init__(**SHIPPED)
        self.name, self.first, self.last = name, first, last  # which the repr shows
        self.register_buffer("calls", torch.zeros((), dtype=torch.int64))  # a checkpoint has it

    def terms(self, z: Tensor) -> Any:
        done = min(1.0, int(self.calls) / (STEPS - 1))
        setattr(self, self.name, self.first + (self.last - self.first) * done)
        self.calls += 1
        return super().terms(z)


class Centred(ssole.SSOLELoss):
    """SSOLE of embeddings less the mean of their view over the batch."""

    def terms(self, z: Tensor) -> Any:
        unit_BVD = F.normalize(z.float(), dim=-1)
        return super().terms(unit_BVD - unit_BVD.mean(0, keepdim=True))


def arms() -> dict[str, Any]:
    """Arms of the comparison; the first is what the others change."""
    constant = {"loss.name": "ssole", **{f"loss.{name}": value for name, value in SHIPPED.items()}}
    return {
        "constant": constant,
        "constant 8": {**constant, "loss.high_rank_weight": 8.0},
        "lambda 8 to 2": Scheduled("high_rank_weight", 8.0, 2.0),
        "lambda 2 to 8": Scheduled("high_rank_weight", 2.0, 8.0),
        "lambda 1 to 12": Scheduled("high_rank_weight", 1.0, 12.0),
        "gamma 1 to 0": Scheduled("gamma", 1.0, 0.0),
        "gamma 0 to 1": Scheduled("gamma", 0.0, 1.0),
        "centred": Centred(**SHIPPED),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--test")
    parser.add_argument("--out", type=Path, required=True, help="folder; the same command goes on in it")
    args = parser.parse_args()
    how: dict[str, Any] = {"recipe": RECIPE, "budget": f"{STEPS}steps", "seeds": 3, "search": 0, "images": 10_000}
    Console().print(ssole.compare(arms(), args.data, test=args.test, out=args.out, **how).table())


if __name__ == "__main__":
    main()
