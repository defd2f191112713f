"""Step time against the number of processes: a model, fitted to local processes and extended on paper to GPUs.

    t(W) = compute(W) + [W > 1] (collectives * latency + bytes / bandwidth)

On this machine W processes share the cores and their memory. So `compute(W)` is measured: the shortest step of W
processes that work side by side, each on its share of the batch, and exchange nothing. What a collective adds to that
is fitted as its latency; most of it is waiting for the slower process. For GPUs, one for each process and a fixed
number of images each, the figures in `Gpu` are assumptions: no run on GPUs stands behind that table.

    python benchmarks/scale.py --processes 1 2 4 --out benchmarks/results/scale.json
"""

from __future__ import annotations

import argparse
import json
import os
import socket
import statistics
import tempfile
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from measure import save
from ssole import distributed
from ssole.config import PretrainConfig, load
from ssole.losses.roots import POLAR_STEPS
from ssole.models.backbone import create_encoder
from ssole.training.step import Learner

SETTINGS: dict[str, Any] = {"batch_size": 64, "device": "cpu", "precision": "float32", "process_timeout": 120.0}
WARM_UP, STEPS = 3, 12


@dataclass(frozen=True)
class Volume:
    """Collectives of a training step, and the bytes that one process hands to them."""

    calls: int
    bytes: int


def volume(config: PretrainConfig, world: int, *, width: int = 4) -> dict[str, Volume]:
    """Volume of a step of the SSOLE loss, by what it is for; `width` is the number of bytes of a number.

    Gradients are what DistributedDataParallel sends while the backward pass runs, in about one call for 25 MiB.
    """
    images, views, dims = config.batch_size // world, config.augment.views, config.projector.dim
    groups = len(config.augment.crops) * config.accumulate
    with torch.device("meta"):
        encoder = create_encoder(config)
    norms = [module.num_features for module in encoder.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    weights = sum(parameter.numel() for parameter in encoder.parameters())
    embeddings = images * views * dims
    passes = 1 if config.accumulate == 1 else 2
    return {
        "embeddings": Volume(2, width * embeddings * (1 + world)),  # gathered, and the gradient of all of them
        "nuclear norms": Volume(5, 2 * 8 * views + 3 * 8),  # of views and of images, and back; in float64
        "batch norm": Volume((passes + 1) * groups * len(norms), (passes + 1) * groups * 2 * width * sum(norms)),
        "agreement": Volume(2, 8 + width),  # on signals and on the loss
        "gradients": Volume(-(-width * weights // (25 << 20)), width * weights),
    }


# Local processes


def measured(world: int, folder: Path, *, together: bool) -> dict[str, float]:
    """Median and shortest step of so many processes, as one group or side by side, in milliseconds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    start = torch.multiprocessing.get_context("spawn").Barrier(world)
    torch.multiprocessing.spawn(_process, (world, port, folder, together, start), nprocs=world)
    seconds = [json.loads((folder / f"{rank}.json").read_text()) for rank in range(world)]
    slowest = [1e3 * max(times) for times in zip(*seconds, strict=True)]
    return {"median_ms": statistics.median(slowest), "least_ms": min(slowest)}


def _process(rank: int, world: int, port: int, folder: Path, together: bool, start: Any) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    if together:
        os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    share = SETTINGS["batch_size"] // world
    config = load("digits-m", **SETTINGS | ({} if together else {"batch_size": share}))
    with distributed.processes(config.process_timeout):
        learner = Learner(config, torch.device("cpu"))
        images = torch.randint(0, 256, (share, 3, 32, 32), dtype=torch.uint8)
        ids = torch.arange(share) + rank * share
        seconds = []
        for _ in range(WARM_UP + STEPS):
            start.wait()
            begin = time.perf_counter()
            learner.step(images, ids, epoch=0, lr=1e-3)
            distributed.maximum(0)
            seconds.append(time.perf_counter() - begin)
    (folder / f"{rank}.json").write_text(json.dumps(seconds[WARM_UP:]))


def fitted(group: dict[int, float], compute: dict[int, float], config: PretrainConfig) -> dict[str, Any]:
    """Latency of a collective by least squares over the numbers of processes, and the step times with it."""
    calls = {world: sum(part.calls for part in volume(config, world).values()) for world in group if world > 1}
    waits = {world: group[world] - compute[world] for world in calls}
    latency = sum(waits[w] * calls[w] for w in calls) / sum(calls[w] ** 2 for w in calls) if calls else 0.0
    predicted = {world: compute[world] + calls.get(world, 0) * latency for world in group}
    return {"compute_ms": compute, "latency_ms": latency, "calls": calls, "predicted_ms": predicted}


# On paper


@dataclass(frozen=True)
class Gpu:
    """Assumptions about a GPU of 2023 and its network; each is a round figure below what vendors state."""

    images_per_second: float = 2500.0
    """Training of ResNet-50 on views of 224 pixels, in bfloat16, forward and back."""
    float64_flops: float = 3e13
    """Products of float64 matrices, in which the loss forms Gram matrices and their inverse roots."""
    latency: float = 3e-5
    """Seconds of a small collective."""
    bandwidth: float = 2e10
    """Bytes a second that a process sends in a large collective between machines."""
    hidden: float = 0.8
    """Share of the gradients' collectives that runs beside the backward pass."""


POLAR_PRODUCTS = 2 + 4 * (len(POLAR_STEPS) - 2) + 3  # k x k products for an inverse root on accelerators
RESNET50 = {
    "model.backbone": "resnet50", "model.stem": "timm", "model.projector_dim": 2048, "device": "cpu",
    "augment.crops": [{"count": 2, "size": 224}],
}  # fmt: skip


def loss_seconds(images: int, views: int, dims: int, world: int, gpu: Gpu) -> float:
    """Seconds of the nuclear norms of views, of which each process takes an equal share while there are enough."""
    k = min(images, dims)
    one = 4 * images * dims * k + 2 * POLAR_PRODUCTS * k**3  # the Gram matrix and the gradient; the inverse root
    return -(-views // world) * one / gpu.float64_flops


def on_paper(world: int, each: int, gpu: Gpu) -> dict[str, float]:
    """Parts of a step of ResNet-50 in seconds, with so many images for each of `world` GPUs."""
    config = load("imagenet100", batch_size=world * each, **RESNET50)
    views, dims = config.augment.views, config.projector.dim
    parts = volume(config, world)
    gradients = parts.pop("gradients")
    # a ring sends a gathered tensor once and a reduced one twice; batch norm waits for the slowest each time
    small = sum(part.calls * gpu.latency + 2 * part.bytes / gpu.bandwidth for part in parts.values())
    large = 2 * gradients.bytes / gpu.bandwidth * (1 - gpu.hidden)
    compute = each * views / gpu.images_per_second
    loss = loss_seconds(config.batch_size, views, dims, world, gpu)
    total = compute + loss + small + large
    shares = {"compute": compute, "loss": loss, "collectives": small, "gradients": large}
    return {"total": total, **shares, "loss_share": loss / total, "efficiency": compute / total}


def batch_for(share: float, world: int, gpu: Gpu) -> int | None:
    """Smallest global batch, a power of two, at which the loss takes this share of a step; None if none does."""
    for exponent in range(6, 24):
        each = (1 << exponent) // world
        if each >= 2 and on_paper(world, each, gpu)["loss_share"] > share:
            return 1 << exponent
    return None


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--images-each", type=int, default=64, help="images for each GPU on paper")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    config, gpu = load("digits-m", **SETTINGS), Gpu()
    with tempfile.TemporaryDirectory() as folder:
        times = {world: measured(world, Path(folder), together=True) for world in args.processes}
        apart = {world: measured(world, Path(folder), together=False) for world in args.processes}
    least = [{world: row["least_ms"] for world, row in rows.items()} for rows in (times, apart)]
    fit = fitted(*least, config)
    print("| processes | shortest step, ms | median | side by side | model |\n|---|---|---|---|---|")
    for world, row in times.items():
        side, model = apart[world]["least_ms"], fit["predicted_ms"][world]
        print(f"| {world} | {row['least_ms']:.0f} | {row['median_ms']:.0f} | {side:.0f} | {model:.0f} |")
    paper = {world: on_paper(world, args.images_each, gpu) for world in (8, 64, 512)}
    print("\n| GPUs (on paper) | batch | step, ms | loss | collectives | efficiency |\n|---|---|---|---|---|---|")
    for world, parts in paper.items():
        batch, total = world * args.images_each, parts["total"]
        waits = (parts["collectives"] + parts["gradients"]) / total
        print(
            f"| {world} | {batch} | {1e3 * total:.0f} | {parts['loss_share']:.1%} | {waits:.1%} "
            f"| {parts['efficiency']:.0%} |"
        )
    limits = {world: batch_for(0.05, world, gpu) for world in (8, 64, 512)}
    print("\nbatch from which the loss takes more than 5 %:", limits)
    if args.out:
        figures = {
            "measured": times,
            "side_by_side": apart,
            "fit": fit,
            "assumed": asdict(gpu),
            "on_paper": paper,
            "batch_at_5_percent": limits,
        }
        save(args.out, figures, packages=["torch", "timm"])


if __name__ == "__main__":
    main()
