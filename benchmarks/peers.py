"""Accuracy after equal time: ssole beside lightly and stable-pretraining, each as it trains on CIFAR-10 itself.

    python benchmarks/peers.py --data cifar10-train.parquet --test cifar10-test.parquet --minutes 10 \\
        --out benchmarks/results/peers.json

All train the network of the recipe `cifar10-cpu` from scratch, on the same images and processors and for the same time,
and are evaluated alike.

- ssole: the recipe `cifar10-cpu` with `--budget`. Reading the images and planning take part of its time.
- lightly: SimCLR with the views, head, batch, temperature and SGD of lightly's benchmark on CIFAR-10.
- stable-pretraining: SimCLR with the views, head, batch, temperature and LARS of its complete example on CIFAR-10.

The others get a plain loop around their own data sets, transforms, loss, head and optimizer, which costs less than
Lightning's trainer. Their learning rates follow a cosine to zero at the end of the time, after a short warm-up, and
their images are decoded before the clock starts. Their settings were made for longer runs and other machines; those of
the recipe were chosen in short runs on train images of this data set. Evaluation is not part of the time.

A run that is finished is kept in `--runs` and not trained again. Needs lightly (pip install 'ssole[bench]') and
stable-pretraining; one that is not installed is left out. solo-learn's newest release, 1.0.2, needs torch 1.9.
"""

from __future__ import annotations

import argparse
import itertools
import json
import math
import shutil
import statistics
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from torch.utils.data import DataLoader

import ssole
from measure import Pictures, installed, save, uniform_images
from ssole.config import load
from ssole.models.backbone import create_backbone, feature_dim
from ssole.runtime import usable_cpus

RECIPE = "cifar10-cpu"
IMAGENET = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
WARM_UP = 0.02  # of the time


@dataclass
class Peer:
    """SimCLR of another library: batches of its data loader, a loss of two views, its optimizer."""

    loader: DataLoader[Any]
    two_views: Callable[[Any], tuple[Tensor, Tensor]]
    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    optimizer: torch.optim.Optimizer

    def train(self, seconds: float) -> dict[str, Any]:
        """Train until the time is over."""
        begun, step, peak = time.perf_counter(), 0, [group["lr"] for group in self.optimizer.param_groups]
        for step, batch in enumerate(_round_and_round(self.loader), 1):
            done = (time.perf_counter() - begun) / seconds
            if done >= 1:
                break
            factor = min(1.0, (done + 1e-3) / WARM_UP) * 0.5 * (1 + math.cos(math.pi * done))
            for group, rate in zip(self.optimizer.param_groups, peak, strict=True):
                group["lr"] = factor * rate
            loss = self.loss(*self.two_views(batch))
            if not torch.isfinite(loss):
                raise FloatingPointError(f"the loss is {loss.item()} at step {step}")
            loss.backward()
            self.optimizer.step()
            self.optimizer.zero_grad()
        spent = time.perf_counter() - begun
        return {"seconds": spent, "steps": step - 1, "images": (step - 1) * int(self.loader.batch_size or 0)}


def _round_and_round(loader: Iterable[Any]) -> Iterator[Any]:
    for _ in itertools.count():
        yield from loader


def lightly(backbone: nn.Module, images: NDArray[np.uint8]) -> Peer:
    """SimCLR of lightly's benchmark on CIFAR-10: batches of 128, temperature 0.5, no blur, SGD."""
    from lightly.data import LightlyDataset
    from lightly.loss import NTXentLoss
    from lightly.models.modules import SimCLRProjectionHead
    from lightly.transforms import SimCLRTransform

    transform = SimCLRTransform(input_size=32, cj_strength=0.5, gaussian_blur=0.0)
    features = feature_dim(backbone)
    model, loss = nn.Sequential(backbone, SimCLRProjectionHead(features, features, 128)).train(), NTXentLoss()
    return Peer(
        loader=_loader(LightlyDataset.from_torch_dataset(Pictures(images), transform=transform), 128),
        two_views=lambda batch: (batch[0][0], batch[0][1]),
        model=model,
        loss=lambda one, other: loss(model(one), model(other)),
        optimizer=torch.optim.SGD(model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4),
    )


def stable_pretraining(backbone: nn.Module, images: NDArray[np.uint8]) -> Peer:
    """SimCLR of stable-pretraining's complete example: batches of 256, temperature 0.5, LARS."""
    import stable_pretraining as spt
    from stable_pretraining.data import transforms as T

    def view(scale: tuple[float, float], *more: Any) -> Any:
        return T.Compose(
            T.RGB(),
            T.RandomResizedCrop((32, 32), scale=scale),
            T.RandomHorizontalFlip(p=0.5),
            T.ColorJitter(brightness=0.4, contrast=0.4, saturation=0.2, hue=0.1, p=0.8),
            T.RandomGrayscale(p=0.2),
            *more,
            T.ToImage(**spt.data.static.CIFAR10),
        )

    views = T.MultiViewTransform([view((0.2, 1.0)), view((0.08, 1.0), T.RandomSolarize(threshold=0.5, p=0.2))])
    head = nn.Sequential(
        *(nn.Linear(feature_dim(backbone), 2048), nn.BatchNorm1d(2048), nn.ReLU(inplace=True)),
        *(nn.Linear(2048, 2048), nn.BatchNorm1d(2048), nn.ReLU(inplace=True)),
        nn.Linear(2048, 256),
    )
    model, loss = nn.Sequential(backbone, head).train(), spt.losses.NTXEntLoss(temperature=0.5)
    data = spt.data.FromTorchDataset(Pictures(images), names=["image", "label"], transform=views)
    return Peer(
        loader=_loader(data, 256),
        two_views=lambda batch: tuple(one["image"] for one in batch["views"]),  # type: ignore[arg-type]
        model=model,
        loss=lambda one, other: loss(model(one), model(other)),
        optimizer=spt.optim.LARS(model.parameters(), lr=5, weight_decay=1e-6),
    )


def _loader(data: Any, batch_size: int) -> DataLoader[Any]:
    workers = usable_cpus()
    return DataLoader(
        data, batch_size=batch_size, shuffle=True, drop_last=True, num_workers=workers, persistent_workers=True
    )


PEERS = {"lightly": lightly, "stable-pretraining": stable_pretraining}


def train(name: str, seed: int, args: argparse.Namespace) -> Path:
    """Folder of a finished run: its `backbone.safetensors`, and `record.json` with time, steps and images."""
    folder = args.runs / f"{name}-{seed}"
    if (folder / "record.json").is_file():
        return Path(folder)
    shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
    print(f"{name}, seed {seed}: {args.minutes:g} minutes", flush=True)
    if name == "ssole":
        begun = time.perf_counter()
        run = ssole.pretrain(args.data, recipe=RECIPE, out=folder, seed=seed, budget=f"{args.minutes:g}m")
        seconds, steps = time.perf_counter() - begun, int(run.metrics[-1]["step"])
        record = {"seconds": seconds, "steps": steps, "images": steps * run.config.batch_size}
    else:
        torch.manual_seed(seed)
        backbone = network()
        record = PEERS[name](backbone, uniform_images(args.data, 10_000)).train(60 * args.minutes)
        folder.mkdir(parents=True, exist_ok=True)
        save_file(backbone.state_dict(), folder / "backbone.safetensors")
    (folder / "record.json").write_text(json.dumps(record), encoding="utf-8")
    return Path(folder)


def network() -> nn.Module:
    """Network of the recipe at timm's initial weights."""
    return create_backbone(load(RECIPE).model, 32)


def opened(folder: Path, name: str) -> Any:
    """What :func:`ssole.evaluate` takes of a finished run."""
    if name == "ssole":
        return folder
    backbone = network()
    backbone.load_state_dict(load_file(folder / "backbone.safetensors"))
    normalisation = IMAGENET  # lightly's default
    if name == "stable-pretraining":
        from stable_pretraining.data import static

        normalisation = static.CIFAR10
    for attribute, value in {"image_size": 32, **normalisation}.items():
        setattr(backbone, attribute, value)
    return backbone


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True, help="training images, 32 px, with labels for the evaluation")
    parser.add_argument("--test", required=True, help="test images")
    parser.add_argument("--minutes", type=float, default=10, help="of training, for each run")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=usable_cpus())
    parser.add_argument("--runs", type=Path, default=Path("runs/peers"), help="where finished runs are kept")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    names = ["ssole", *(name for name in PEERS if installed(name.replace("-", "_")))]
    folders = {(name, seed): train(name, seed, args) for seed in args.seeds for name in names}
    models = {f"{name}, seed {seed}": opened(folder, name) for (name, seed), folder in folders.items()}
    result = ssole.evaluate(models, args.data, test=args.test, baselines=False)
    arms = {}
    print("\n| | kNN (k = 20), % | linear probe, % | images trained on |\n|---|---|---|---|")
    for name in names:
        rows = [result.rows[f"{name}, seed {seed}"] for seed in args.seeds]
        records = [json.loads((folders[name, seed] / "record.json").read_text()) for seed in args.seeds]
        arm = {figure: [100 * row[figure].value for row in rows] for figure in ("knn20", "linear")}
        arms[name] = {**arm, "runs": records}
        images = statistics.mean(record["images"] for record in records)
        print(f"| {name} | {' | '.join(map(mean_and_std, arm.values()))} | {images:,.0f} |")
    if args.out:
        how = {"recipe": RECIPE, "minutes": args.minutes, "seeds": args.seeds, "threads": args.threads}
        save(args.out, {**how, "arms": arms}, packages=("torchvision", "timm", "lightly", "stable-pretraining"))


def mean_and_std(values: list[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread}"


if __name__ == "__main__":
    main()
