"""Ranks of embeddings in runs that learn and in runs that collapse, from which the guardian's limits come.

    python experiments/guardian.py --out benchmarks/results/guardian.json

Every run trains a small ResNet on digits-m for 300 steps of 64 images, with the guardian off. In runs called healthy
each loss has its usual settings; in the others, what spreads embeddings is switched off or weak, or the learning rate
is absurd. Not all of these collapse. 12 minutes on two cores.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from ssole import api
from ssole.config import apply_overrides, load
from ssole.runtime import environment
from ssole.training.guardian import RANK_SHARE, patience, rank_share
from ssole.training.loop import Given
from ssole.training.watch import NonFiniteLossError

STEPS, BATCH = 300, 64
SMALL: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": BATCH,
    "log_every": 5,
    "knn_every": STEPS,
    "guardian": "off",
    "compile": "never",
    "views": 2,
    "augment.crops.0.size": 24,
    "model.backbone_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128]},
    "loss": {"high_rank_weight": 0.6},
}
# apart, because another loss brings its own
PROJECTOR = {"model.projector_dim": 128, "model.projector_hidden": 256, "model.projector_layers": 2}
SGD = {"optim": {"name": "sgd", "lr": 2.0, "final_lr": 0.0}}
ADAMW = {"optim": {"name": "adamw", "lr": 2e-3, "final_lr": 0.0}}
BATCH_NORM = {"model.projector_norm": "batch"}
METHODS: dict[str, dict[str, Any]] = {
    "ssole": {},
    "ssole, lambda 2": {"loss": {"high_rank_weight": 2.0}},
    "ssole, temperature 0.3": {"loss": {"temperature": 0.3}},
    "ssole, SGD": SGD,
    "ssole, AdamW": ADAMW,
    "simclr": {"loss": {"name": "simclr"}, **BATCH_NORM},
    "barlow-twins": {"loss": {"name": "barlow-twins"}, **BATCH_NORM},
    "vicreg": {"loss": {"name": "vicreg"}, **BATCH_NORM},
    "frossl": {"loss": {"name": "frossl"}, **BATCH_NORM},
    "mmcr": {"loss": {"name": "mmcr"}, **BATCH_NORM},
    "w-mse": {"loss": {"name": "w-mse", "subset_size": 64}, "model.projector_dim": 16, **BATCH_NORM},
    "lejepa": {"loss": {"name": "lejepa"}, **BATCH_NORM},
    "supervised": {"loss": {"name": "supervised"}, "model.projector_layers": 0},
}
HEALTHY = {f"{name}, seed {seed}": {**settings, "seed": seed} for seed in (0, 1) for name, settings in METHODS.items()}
COLLAPSED: dict[str, dict[str, Any]] = {
    **{f"ssole, lambda 0, seed {s}": {"loss": {"high_rank_weight": 0.0}, "seed": s} for s in (0, 1)},
    "ssole, lambda 0, SGD": {"loss": {"high_rank_weight": 0.0}, **SGD},
    "ssole, lambda 0, AdamW": {"loss": {"high_rank_weight": 0.0}, **ADAMW},
    "ssole, lambda 0.01": {"loss": {"high_rank_weight": 0.01}},
    "ssole, rate x 100": {"optim.lr": 5.0},
    "simclr, temperature 100": {"loss": {"name": "simclr", "temperature": 100.0}, "model.projector_norm": "none"},
    "vicreg, no variance": {"loss": {"name": "vicreg", "variance_weight": 0.0, "covariance_weight": 0.0}},
    "lejepa, no SIGReg": {"loss": {"name": "lejepa", "sigreg_weight": 0.0}},
    "frossl, invariance x 1000": {"loss": {"name": "frossl", "invariance_weight": 1000.0}},
}


def measure(settings: dict[str, Any], folder: Path) -> dict[str, Any]:
    """What a run shows: its ranks, its longest collapse by the guardian's limit, and its kNN accuracy."""
    config = load("digits-m")
    for overrides in (SMALL, settings, PROJECTOR | {k: v for k, v in settings.items() if k.startswith("model.")}):
        config = apply_overrides(config, overrides)
    try:
        run = api.start(config, folder, Given(progress=False))
    except NonFiniteLossError as error:
        return {"error": str(error)}
    rows = [row for row in run.metrics if "effective_rank" in row]
    shares = [rank_share(row, config) for row in rows]
    return {
        "share": [round(share, 4) for share in shares],
        "rank": [round(row["effective_rank"], 3) for row in rows],
        "longest_collapse": longest(rows, shares),
        "patience": patience(config, STEPS),
        "knn20": next(row["knn20"] for row in run.metrics if "knn20" in row),
        "seconds": rows[-1]["seconds"],
    }


def longest(rows: list[dict[str, Any]], shares: list[float]) -> int:
    """Most steps in a row that the guardian would call collapsed."""
    most, since = 0, None
    for row, share in zip(rows, shares, strict=True):
        since = None if share >= RANK_SHARE else row["step"] if since is None else since
        most = max(most, 0 if since is None else row["step"] - since)
    return most


def main() -> int:
    """Entry point; exit code 1 after a false alarm."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, help="JSON file for the result")
    args = parser.parse_args()
    found: dict[str, dict[str, Any]] = {"healthy": {}, "collapsed": {}}
    with tempfile.TemporaryDirectory() as folder:
        for kind, runs in (("healthy", HEALTHY), ("collapsed", COLLAPSED)):
            for name, settings in runs.items():
                found[kind][name] = one = measure(settings, Path(folder) / name)
                tail = (
                    one.get("error") or f"least rank {min(one['rank'])}, last {one['rank'][-1]}, kNN {one['knn20']:.3f}"
                )
                print(f"{kind}  {name}: {tail}, longest collapse {one.get('longest_collapse')}", flush=True)
    alarms = {
        kind: [n for n, one in runs.items() if one.get("longest_collapse", 0) >= one.get("patience", 1)]
        for kind, runs in found.items()
    }
    counts = {kind: f"{len(alarms[kind])} of {len(runs)}" for kind, runs in found.items()}
    print(f"alarms: {counts['healthy']} healthy, {counts['collapsed']} collapsed")
    if args.out is not None:
        facts = {"rank_share": RANK_SHARE, "alarms": alarms, "environment": environment()}
        args.out.write_text(json.dumps(facts | found, indent=1) + "\n")
    return 1 if alarms["healthy"] else 0


if __name__ == "__main__":
    sys.exit(main())
