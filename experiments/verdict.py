"""What label-free figures say about accuracy: many small runs, good and bad, each measured with and without labels.

    python experiments/verdict.py --data cifar10=cifar10-train.parquet --data digits-m=digits-m

`experiments/verdict_fit.py` makes the constants of the verdict of the result.

Each set is cut down to 4,000 images for training and for the memory of kNN, and 1,000 others whose kNN accuracy
(k = 20) is the truth. Arms change one setting: weight and temperature of the loss, learning rate, augmentation, width
of the embeddings, method, and some that collapse. Each arm is trained for 60 and for 240 steps, two arms also for 960,
which the committed result does not have.
The result is written after every run, and a run in it is not repeated. A run takes 5 to 15 s on one free core.

The rise of kNN accuracy over the last fifth of a run is measured by evaluations while training. Runs of 60 steps that
are in the result without it are trained once more for it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

import ssole
from ssole.data.arrays import ArraySource
from ssole.data.base import SubsetSource
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.evaluation.label_free import VIEWS
from ssole.evaluation.online import Evaluator, knn_evaluator
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.results import LABEL_FREE
from ssole.evaluation.verdict import last_rise
from ssole.runtime import environment
from ssole.views import make_views

TRAIN, TEST = 4000, 1000
STEPS, LONGER = (60, 240), 960
BASE: dict[str, Any] = {
    "batch_size": 64,
    "compile": "never",
    "guardian": "off",
    "log_every": 2,
    "checkpoint_every": 100_000,
    "model": {
        "backbone": "resnet18",
        "backbone_args": {"layers": [1, 1, 1, 1], "channels": [16, 32, 64, 128], "zero_init_last": False},
        "stem": "4x4",
        "projector_dim": 128,
        "projector_hidden": 512,
        "projector_layers": 2,
    },
    "augment": {
        "hflip": 0.5,
        "crops": [{"count": 2, "size": 24, "scale": [0.3, 1.0]}],
        "jitter": 0.8,
        "brightness": 0.4,
        "contrast": 0.4,
        "saturation": 0.4,
        "hue": 0.1,
        "grey": 0.2,
    },
    "loss": {"high_rank_weight": 2.0},
    "optim": {"name": "muon", "lr": 0.05, "final_lr": 0.0, "weight_decay": 0.1, "momentum": 0.95},
}
DIGITS = {"hflip": 0.0, "brightness": 0.8, "contrast": 0.8, "saturation": 0.8, "hue": 0.5, "grey": 0.4}
ARMS: dict[str, dict[str, Any]] = {
    "base": {},
    **{f"weight {w:g}": {"loss.high_rank_weight": w} for w in (0.0, 0.02, 0.1, 0.5, 16.0)},
    **{f"temperature {t:g}": {"loss.temperature": t} for t in (0.1, 0.5)},
    **{f"rate {lr:g}": {"optim.lr": lr} for lr in (0.0005, 0.005, 0.5)},
    **{f"width {d}": {"model.projector_dim": d} for d in (2, 8)},
    "crops only": {"augment.jitter": 0.0, "augment.grey": 0.0},
    "hardly augmented": {"augment.jitter": 0.0, "augment.grey": 0.0, "augment.crops.0.scale": [0.9, 1.0]},
    "strongly augmented": {"augment.crops.0.scale": [0.05, 0.3], "augment.hue": 0.5, "augment.grey": 0.5},
    "simclr": {"loss": {"name": "simclr", "temperature": 0.2}},
    "vicreg": {"loss": {"name": "vicreg"}},
    "vicreg without variance": {"loss": {"name": "vicreg", "variance_weight": 0.0, "covariance_weight": 0.0}},
    "barlow-twins": {"loss": {"name": "barlow-twins"}},
    "lejepa": {"loss": {"name": "lejepa"}},
    "ole": {"loss": {"name": "ole"}},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", action="append", required=True, metavar="NAME=DATA", help="labelled images")
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/verdict.json"))
    args = parser.parse_args()
    sets = {name: two_parts(name, data) for name, data in (item.split("=", 1) for item in args.data)}
    report = json.loads(args.out.read_text(encoding="utf-8")) if args.out.is_file() else {"runs": []}
    report["command"] = "python experiments/verdict.py " + " ".join(f"--data {name}=..." for name in sets)
    report["environment"] = environment(command=False)
    report["settings"] = {"base": BASE, "arms": ARMS, "train": TRAIN, "test": TEST}
    done = {(run["data"], run["arm"], run["steps"]) for run in report["runs"]}
    wanted = [(arm, steps) for steps in STEPS for arm in ARMS] + [("base", LONGER), ("simclr", LONGER)]
    for arm, steps in wanted:
        for name, (train, test) in sets.items():
            if (name, arm, steps) not in done:
                report["runs"].append({"data": name, "arm": arm, "steps": steps, **measure(arm, steps, train, test)})
                args.out.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
                print(json.dumps(report["runs"][-1]), flush=True)


def two_parts(name: str, data: str, train: int = TRAIN, test: int = TEST) -> tuple[ArraySource, ArraySource]:
    """Images of a data set in two parts: to train on, and to test kNN on."""
    whole = open_source(data)
    order = torch.randperm(len(whole), generator=torch.Generator().manual_seed(0))[: train + test].numpy()
    source = SubsetSource(whole, order)
    images = ImageStore(source, cache=False, progress=False).get(torch.arange(len(source)))
    assert isinstance(images, torch.Tensor)
    array, labels = images.permute(0, 2, 3, 1).numpy(), np.asarray(source.labels)
    cut = len(order) - test
    return ArraySource(array[:cut], labels[:cut], name=f"{name}-train"), ArraySource(
        array[cut:], labels[cut:], name=name
    )


def trained(folder: str, arm: str, steps: int, train: ArraySource, test: ArraySource) -> ssole.Run:
    """Run of an arm, whose kNN accuracy is measured after four fifths of its steps and at its end."""
    augment = DIGITS if train.name == "digits-m-train" else {}
    overrides = {**flat(BASE), **{f"augment.{key}": value for key, value in augment.items()}, **ARMS[arm]}
    if isinstance(overrides.get("loss"), dict):  # another method has none of the base's settings
        overrides = {key: value for key, value in overrides.items() if not key.startswith("loss.")}
    loss = overrides.pop("loss", None)
    out, made = Path(folder) / "run", list[Evaluator]()

    def evaluate(backbone: nn.Module) -> dict[str, float]:
        if not made:  # the config has mean and standard deviation of the images now
            preprocessing = Preprocessing.from_config(ssole.Run(out).config)
            stores = [preprocessing.open_store(source, progress=False) for source in (train, test)]
            made.append(knn_evaluator(*stores, preprocessing))
        return made[0](backbone)

    return ssole.pretrain(
        train, recipe="digits-m", out=out, steps=steps, progress=False, evaluators={steps * 4 // 5: evaluate},
        device="cpu", knn_every=None, loss=loss, **overrides,
    )  # fmt: skip


def measure(arm: str, steps: int, train: ArraySource, test: ArraySource) -> dict[str, Any]:
    """Figures of one run: accuracy and its last rise, label-free figures, and how loss and rank went."""
    begin = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        run = trained(folder, arm, steps, train, test)
        seconds = time.perf_counter() - begin
        views = partial(make_views, recipe=run.config.augment.main_views(VIEWS), seed=0, epoch=0)
        rows = ssole.evaluate(
            run, train, test=test, protocol=("knn", "label_free"), views=views, baselines=arm == "base",
            device="cpu", progress=False,
        ).rows  # fmt: skip
        rise, metrics = last_rise(run.metrics), [row for row in run.metrics if "loss" in row]
    return {
        "knn20": rows["trained"]["knn20"].value,
        "rise": rise,
        "baselines": {row: {name: score.value for name, score in scores.items()} for row, scores in rows.items()},
        "figures": {name: rows["trained"][name].value for name in LABEL_FREE if name in rows["trained"]},
        "curves": {key: twelfths([row[key] for row in metrics if key in row]) for key in ("loss", "effective_rank")},
        "seconds": round(seconds, 1),
    }


def twelfths(values: list[float]) -> list[float]:
    """Means over each twelfth of a curve."""
    return [float(np.mean(part)) for part in np.array_split(values, 12)]


def flat(settings: dict[str, Any]) -> dict[str, Any]:
    """Settings by dotted name; those of the backbone stay together."""
    dotted = {}
    for key, value in settings.items():
        if isinstance(value, dict):
            dotted |= {f"{key}.{inner}": one for inner, one in value.items()}
        else:
            dotted[key] = value
    return dotted


if __name__ == "__main__":
    main()
