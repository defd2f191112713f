"""How closely runs end with their budget: `ssole pretrain --data FOLDER --budget T`, without a recipe.

    python benchmarks/budget.py --images cifar10-train.parquet --budgets 2m 5m 15m --out benchmarks/results/budget.json

Each run is a process of its own, timed from its start to its end. `final_lr_over_peak` shows that the schedule came
to its end. The images are the first `--count` of a data set, written as PNG files.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from measure import save
from ssole import Run
from ssole.config.budget import budget_seconds
from ssole.data.decode import decode
from ssole.data.sources import open_source


def write_images(data: str, count: int, folder: Path) -> Path:
    """The first images of a data set as PNG files."""
    from PIL import Image

    source = open_source(data)
    folder.mkdir()
    for i in range(min(count, len(source))):
        pixels = decode(source.read(i), where=source.id(i))
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(folder / f"{i:06d}.png")
    return folder


def measure(images: Path, budget: str, out: Path) -> dict[str, Any]:
    """One run: what it took, and what it did with the time."""
    command = [sys.executable, "-m", "ssole", "pretrain", "--data", str(images), "--budget", budget, "--out", str(out)]
    before, begin = os.getloadavg()[0], time.monotonic()
    subprocess.run(command, check=True)
    seconds = time.monotonic() - begin
    run = Run(out)
    last, config = run.metrics[-1], run.config
    return {
        "budget": budget,
        "seconds": round(seconds, 1),
        "share_of_budget": round(seconds / budget_seconds(budget), 4),
        "steps": last["step"],
        "steps_planned": config.steps,
        "final_lr_over_peak": last["lr"] / config.optim.lr,
        "load_average": [before, os.getloadavg()[0]],
        "reasons": list(config.reasons),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", required=True, help="data set, such as cifar10-train.parquet")
    parser.add_argument("--count", type=int, default=5000, help="images to take")
    parser.add_argument("--budgets", nargs="+", default=["2m", "5m"])
    parser.add_argument("--out", type=Path, help="file of the result; runs that it holds are kept")
    args = parser.parse_args()
    rows = json.loads(args.out.read_text())["runs"] if args.out and args.out.exists() else []
    with tempfile.TemporaryDirectory() as folder:
        images = write_images(args.images, args.count, Path(folder) / "images")
        for number, budget in enumerate(args.budgets):
            rows.append(measure(images, budget, Path(folder) / f"run-{number}"))
            print(json.dumps(rows[-1], indent=1))
            if args.out:
                save(args.out, {"images": args.count, "runs": rows}, packages=["torch"])


if __name__ == "__main__":
    main()
