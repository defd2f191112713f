"""Train a recipe with several seeds, judge each run, and keep the figures: mean, standard deviation and n over runs.

    python benchmarks/accuracy.py digits-m --seeds 0 1 2 --out benchmarks/results/digits-m.json
    python benchmarks/accuracy.py cifar10-cpu --data cifar10-train.parquet --test cifar10-test.parquet --out ...
    python benchmarks/accuracy.py digits-m --set loss.gradient=reference --out ...      an ablation

A run folder that is already finished is only judged again. Training time is the run's own clock, without evaluation.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
from pathlib import Path
from typing import Any

import yaml

import ssole
from measure import save


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipe")
    parser.add_argument("--data", help="training images; by default the recipe's own")
    parser.add_argument("--test", help="test images; by default the test split of the data")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--set", nargs="*", default=[], metavar="KEY=VALUE", help="settings to change, values as in YAML"
    )
    parser.add_argument("--runs", type=Path, default=Path("runs/accuracy"), help="where the run folders go")
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    args = parser.parse_args()
    overrides = {key: yaml.safe_load(value) for key, value in (item.split("=", 1) for item in args.set)}

    runs = [train(args, seed, overrides) for seed in args.seeds]
    data = args.data or runs[0].config.data
    result = ssole.evaluate([run.path for run in runs], data, test=args.test)
    minutes = [minutes_of(run) for run in runs]
    report = {
        "command": f"python benchmarks/accuracy.py {args.recipe}"
        + (" --set " + " ".join(args.set) if args.set else ""),
        "recipe": args.recipe,
        "overrides": overrides,
        "seeds": args.seeds,
        "minutes": {"mean": statistics.mean(minutes), "max": max(minutes), "each": minutes},
        "final": [last_metrics(run) for run in runs],
        "result": dataclasses.asdict(result),
    }
    for part in ("train", "test"):  # names of images, not of this machine's folders
        report["result"][part] = str(report["result"][part]).replace(str(Path(data).parent) + "/", "")
    save(args.out, report, packages=())

    from rich import print as rich_print

    rich_print(result.table())
    print(f"training: {statistics.mean(minutes):.1f} min on average, {max(minutes):.1f} at most")


def train(args: argparse.Namespace, seed: int, overrides: dict[str, Any]) -> ssole.Run:
    """The finished run of one seed; an interrupted one goes on."""
    name = "-".join([args.recipe, *(f"{key}={value}" for key, value in overrides.items()), f"seed{seed}"])
    folder = args.runs / name.replace("/", "_")
    if (folder / "config.yaml").is_file():
        return ssole.resume(folder)
    return ssole.pretrain(args.data, recipe=args.recipe, out=folder, seed=seed, **overrides)


def minutes_of(run: ssole.Run) -> float:
    return max(float(row["seconds"]) for row in run.metrics) / 60


def last_metrics(run: ssole.Run) -> dict[str, Any]:
    return [row for row in run.metrics if "loss" in row][-1]


if __name__ == "__main__":
    main()
