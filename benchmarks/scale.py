"""Step time against the number of processes: a model, fitted to local processes and extended on paper to GPUs.

    t(W) = compute / min(W, cores) + loss + [W > 1] (collectives * latency + bytes / bandwidth)

`compute` is views, network and optimizer on the whole batch by one process; `loss` is what every process does on the
gathered embeddings. On this machine, W processes share the cores, and latency is fitted. For GPUs, one for each process
and a fixed number of images each, the figures in `GPU` are assumptions: no run on GPUs stands behind this table.

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


def measured(world: int, folder: Path) -> dict[str, float]:
    """Median and shortest step of so many processes, in milliseconds."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        port = listener.getsockname()[1]
    torch.multiprocessing.spawn(_process, (world, port, folder), nprocs=world)
    times: dict[str, float] = json.loads((folder / f"{world}.json").read_text())
    return times


def _process(rank: int, world: int, port: int, folder: Path) -> None:
    torch.set_num_threads(1)
    names = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in names.items()}, MASTER_ADDR="127.0.0.1")
    config = load("digits-m", **SETTINGS)
    with distributed.processes(config.process_timeout):
        learner = Learner(config, torch.device("cpu"))
        images = torch.randint(0, 256, (config.batch_size, 3, 32, 32), dtype=torch.uint8)
        ids = torch.arange(config.batch_size)
        seconds = []
        for _ in range(WARM_UP + STEPS):
            begin = time.perf_counter()
            share = ids.chunk(world)[rank]
            learner.step(images[share], share, epoch=0, lr=1e-3)
            distributed.agree(0)
            seconds.append(1e3 * (time.perf_counter() - begin))
        if rank == 0:
            taken = seconds[WARM_UP:]
            found = {"median_ms": statistics.median(taken), "least_ms": min(taken)}
            (folder / f"{world}.json").write_text(json.dumps(found))


def loss_ms(config: PretrainConfig) -> float:
    """Shortest time of the loss alone, forward and back, on a whole batch."""
    learner = Learner(config, torch.device("cpu"))
    z = torch.randn(config.batch_size, config.augment.views, config.projector.dim, requires_grad=True)
    seconds = []
    for _ in range(10):
        begin = time.perf_counter()
        learner.loss_terms(z)["loss"].backward()
        seconds.append(1e3 * (time.perf_counter() - begin))
    return min(seconds)


def fitted(times: dict[int, float], loss: float, config: PretrainConfig, cores: int) -> dict[str, Any]:
    """Compute time, and the latency of a collective by least squares over the numbers of processes."""
    compute = times[1] - loss
    calls = {world: sum(part.calls for part in volume(config, world).values()) for world in times if world > 1}
    rest = {world: times[world] - loss - compute / min(world, cores) for world in calls}
    latency = sum(rest[w] * calls[w] for w in calls) / sum(calls[w] ** 2 for w in calls) if calls else 0.0
    predicted = {w: compute / min(w, cores) + loss + (calls[w] * latency if w > 1 else 0.0) for w in times}
    return {"compute_ms": compute, "loss_ms": loss, "latency_ms": latency, "calls": calls, "predicted_ms": predicted}


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
    config, cores, gpu = load("digits-m", **SETTINGS), os.cpu_count() or 1, Gpu()
    with tempfile.TemporaryDirectory() as folder:
        times = {world: measured(world, Path(folder)) for world in args.processes}
    torch.set_num_threads(1)
    fit = fitted({world: row["least_ms"] for world, row in times.items()}, loss_ms(config), config, cores)
    print("| processes | shortest step, ms | median | model |\n|---|---|---|---|")
    for world, row in times.items():
        print(f"| {world} | {row['least_ms']:.0f} | {row['median_ms']:.0f} | {fit['predicted_ms'][world]:.0f} |")
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
            "fit": fit,
            "assumed": asdict(gpu),
            "on_paper": paper,
            "batch_at_5_percent": limits,
        }
        save(args.out, figures, packages=["torch", "timm"])


if __name__ == "__main__":
    main()
