"""Measurements that need a CUDA GPU, piece by piece.

    python benchmarks/gpu_suite.py loss --out benchmarks/results/loss-h200.json
    python benchmarks/gpu_suite.py cifar10 --data cifar10-train.parquet --test cifar10-test.parquet --out ...
    python benchmarks/gpu_suite.py views --out ...      views a second, and their share of a training step
    python benchmarks/gpu_suite.py step --out ...       pretraining against its roofline, ResNet-18 and ResNet-50

Runs from a checkout too (PYTHONPATH=src). `loss` needs torch alone; the others what the package depends on. Each piece
stays under 9 minutes, prints a table and returns what is saved.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ssole
from loss import GRID, embeddings, gradient, hardware, oracle, textbook
from measure import photographs, ratio
from ssole.config import PretrainConfig, load
from ssole.data.sources import open_source
from ssole.evaluation.evaluate import knn_evaluator
from ssole.evaluation.preprocessing import Preprocessing
from ssole.losses import SSOLELoss
from ssole.runtime import resolve_device
from step import Roofline, compete, synchronize
from views import Setting

REPEATS = 9
STEPS_AT_ONCE = 10  # timed together, so that launching from the host can run ahead as it does in training


def loss_piece() -> dict[str, Any]:
    """Forward + backward against the textbook version; the goal is 100x and under 2 ms at (256, 8, 4096)."""
    print(
        "| B, V, D | textbook ms | SSOLELoss ms | of it on the device | speedup "
        "| gradient error: textbook | SSOLELoss | extra MB |"
    )
    print("|---|---|---|---|---|---|---|---|")
    rows = []
    for shape in GRID:
        z = embeddings(shape).cuda()
        exact = oracle(z)
        loss = SSOLELoss(check_input=False)
        ours = gradient(loss, z)
        row = {
            "shape": shape,
            "textbook_gradient_error": relative(gradient(textbook, z), exact),
            "ssole_gradient_error": relative(ours, exact),
            "ssole_peak_extra_mb": peak_extra_bytes(loss, z) / 1e6,
            "synchronizes": synchronizes(loss, z),
            "textbook_ms": milliseconds(textbook, z, repeats=5),
            "ssole_ms": milliseconds(loss, z, repeats=50),
            "ssole_device_ms": device_milliseconds(loss, z),
        }
        row["speedup"] = row["textbook_ms"] / row["ssole_ms"]
        rows.append(row)
        print(
            f"| {', '.join(map(str, shape))} | {row['textbook_ms']:.2f} "
            f"| {row['ssole_ms']:.3f} | {row['ssole_device_ms']:.3f} "
            f"| {row['speedup']:.0f}x | {row['textbook_gradient_error']:.1e} | {row['ssole_gradient_error']:.1e} "
            f"| {row['ssole_peak_extra_mb']:.0f} |" + (" SYNCHRONIZES" if row["synchronizes"] else ""),
            flush=True,
        )
    return {"rows": rows}


def step(loss: Callable[[Tensor], Tensor], z: Tensor) -> None:
    loss(z.detach().requires_grad_()).backward()


def milliseconds(loss: Callable[[Tensor], Tensor], z: Tensor, *, repeats: int) -> float:
    """Median of single steps, from an idle device to an idle device: what a step costs, launching included."""
    times = []
    for _ in range(repeats + 2):
        start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
        torch.cuda.synchronize()
        start.record()
        step(loss, z)
        end.record()
        torch.cuda.synchronize()
        times.append(start.elapsed_time(end))
    return statistics.median(times[2:])


def device_milliseconds(loss: Callable[[Tensor], Tensor], z: Tensor, repeats: int = 50) -> float:
    """Mean over steps captured in one CUDA graph: what the device itself is busy for."""
    leaf = z.detach().requires_grad_()
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        for _ in range(3):
            torch.autograd.grad(loss(leaf), leaf)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        torch.autograd.grad(loss(leaf), leaf)
    start, end = torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True)
    graph.replay()
    torch.cuda.synchronize()
    start.record()
    for _ in range(repeats):
        graph.replay()
    end.record()
    torch.cuda.synchronize()
    return start.elapsed_time(end) / repeats


def synchronizes(loss: Callable[[Tensor], Tensor], z: Tensor) -> bool:
    step(loss, z)
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(loss, z)
    except RuntimeError as error:
        print(error)
        return True
    finally:
        torch.cuda.set_sync_debug_mode("default")
    return False


def peak_extra_bytes(loss: Callable[[Tensor], Tensor], z: Tensor) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    step(loss, z)
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def relative(actual: Tensor, expected: Tensor) -> float:
    return float((actual.double() - expected).norm() / expected.norm())


PROBE_STEPS = 60


def cifar10_piece(data: str, test: str, minutes: float, out: Path, **overrides: Any) -> dict[str, Any]:
    """The `cifar10` recipe: throughput, and kNN accuracy over a schedule that fits into so many minutes."""
    pretrain = partial(ssole.pretrain, data, recipe="cifar10", log_every=20, **overrides)
    probe = pretrain(steps=PROBE_STEPS, out=out / "probe", evaluators={})
    rate = timed_rate(probe)
    batch = probe.config.batch_size
    steps = max(PROBE_STEPS, int(60 * minutes * rate / batch))
    knn = cifar10_knn(data, test, probe.config)
    run = pretrain(steps=steps, out=out / "run", evaluators={max(1, steps // 10): knn})
    curve = [row for row in run.metrics if "knn20" in row]
    for row in curve:
        print(f"step {row['step']}: kNN {row['knn20']:.2%} after {row['seconds']:.0f} s", flush=True)
    views = run.config.augment.views
    return {"steps": steps, "images_per_second": timed_rate(run), "views_per_image": views, "curve": curve}


def timed_rate(run: ssole.Run) -> float:
    """Images a second between the first and the last line of metrics: without warming up."""
    rows = [row for row in run.metrics if "loss" in row]
    images = (rows[-1]["step"] - rows[0]["step"]) * run.config.batch_size
    return float(images / (rows[-1]["seconds"] - rows[0]["seconds"]))


def cifar10_knn(data: str, test: str, config: PretrainConfig) -> Callable[[nn.Module], dict[str, float]]:
    augment = config.augment
    preprocessing = Preprocessing(image_size=augment.image_size, mean=augment.mean, std=augment.std)
    train_store, test_store = (preprocessing.open_store(open_source(spec), progress=False) for spec in (data, test))
    return knn_evaluator(train_store, test_store, preprocessing)


def views_piece(*, batches: Mapping[int, int], recipe: str = "cifar10", **overrides: Any) -> dict[str, Any]:
    """SimCLR's views of images on the device; the goals are 1 M views/s at 32 px and 50 k at 224 px, and views under a
    tenth of a step of ResNet-18.

    Args:
        batches: images in a call by size of the views.
    """
    print("| size | images | views/s | ms of views | ms of the rest of the step | share of views |")
    print("|---|---|---|---|---|---|")
    rows = []
    for size, batch in batches.items():
        images = photographs(batch, 32, 32, shrink=4) if size <= 32 else photographs(batch, 300, 400)
        setting = Setting(size=size, views=2, blur=size > 64, images=images)
        crops = [{"count": setting.views, "size": size}]
        changes = {"batch_size": batch, "augment.crops": crops, **overrides}
        config = load(recipe, **changes)
        views_ms = milliseconds_of_views(setting, config)
        roofline = Roofline(config, batches=1)
        rest_ms = statistics.median(1e3 * roofline(STEPS_AT_ONCE) / STEPS_AT_ONCE for _ in range(REPEATS))
        row = {
            "size": size,
            "images": batch,
            "views_per_second": 1e3 * batch * setting.views / views_ms,
            "views_ms": views_ms,
            "rest_of_step_ms": rest_ms,
            "share_of_views": views_ms / (views_ms + rest_ms),
        }
        rows.append(row)
        print(
            f"| {size} | {batch} | {row['views_per_second']:,.0f} | {views_ms:.3f} | {rest_ms:.2f} "
            f"| {row['share_of_views']:.1%} |",
            flush=True,
        )
    return {"rows": rows}


def milliseconds_of_views(setting: Setting, config: PretrainConfig) -> float:
    """Median of a call of `make_views` among several, from an idle device to an idle device."""
    device = resolve_device(config.device)
    batch = torch.from_numpy(setting.images).permute(0, 3, 1, 2).contiguous().to(device)
    ids = torch.arange(len(batch), device=device)
    times = []
    for repeat in range(REPEATS + 1):
        synchronize(config)
        begun = time.perf_counter()
        for number in range(STEPS_AT_ONCE):
            ssole.make_views(batch, ids, recipe=setting.recipe, seed=repeat, epoch=number)
        synchronize(config)
        times.append(1e3 * (time.perf_counter() - begun) / STEPS_AT_ONCE)
    return statistics.median(times[1:])


def step_piece(configs: Mapping[str, tuple[PretrainConfig, Any]], *, steps: int, blocks: int) -> dict[str, Any]:
    """Pretraining against its roofline; the goals are 95 % with ResNet-18 at 32 px and 90 % with ResNet-50 at 224 px.

    Args:
        configs: settings and images by name.
        steps: in a block; a multiple of `log_every`, for logging is when the host waits for the device.
    """
    rows = []
    print("| encoder | images/s | of the roofline | in single blocks |\n|---|---|---|---|")
    for name, (config, images) in configs.items():
        rates = compete(config, images, {"roofline": Roofline(config)}, steps=steps, blocks=blocks)
        share = ratio(rates["ssole"], rates["roofline"])
        setting = {"encoder": name, "views": config.augment.views, "batch_size": config.batch_size}
        rows.append({**setting, "images_per_second": rates, "of_the_roofline": share})
        print(
            f"| {name} | {statistics.median(rates['ssole']):,.0f} | {share['median']:.1%} "
            f"| {share['least']:.1%} to {share['largest']:.1%} |",
            flush=True,
        )
    return {"rows": rows, "steps": steps, "blocks": blocks}


def step_configs(folder: Path, *, small: int = 20_000, large: int = 4_000) -> dict[str, tuple[PretrainConfig, Any]]:
    """So many small images in memory, and so many photographs in files: the first block passes over all of those."""
    calm = {"optim.lr": 0.01, "optim.final_lr": 0.0, "log_every": 20}  # nothing here depends on learning
    resnet18 = load("cifar10", **calm)
    resnet50 = {"model.backbone": "resnet50", "batch_size": 128, "views": 2}
    return {
        "ResNet-18, 32 px": (resnet18, photographs(small, 32, 32, shrink=4)),
        "ResNet-50, 224 px": (
            load("imagenet100", **calm, **resnet50),
            str(write_photographs(folder, large)),
        ),
    }


def write_photographs(folder: Path, n: int) -> Path:
    """JPEGs of different sizes, as photographs have."""
    from PIL import Image

    folder.mkdir(parents=True)
    for number, image in enumerate(photographs(n, 300, 400)):
        Image.fromarray(image[: 300 - number % 40, : 400 - number % 60]).save(folder / f"{number:05}.jpg", quality=90)
    return folder


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=["loss", "cifar10", "views", "step"])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--data", help="cifar10: parquet file of the training images")
    parser.add_argument("--test", help="cifar10: parquet file of the test images")
    parser.add_argument("--minutes", type=float, default=6.0, help="cifar10: training time to aim for")
    args = parser.parse_args()
    if args.piece == "cifar10" and not (args.data and args.test):
        parser.error("the cifar10 piece needs --data and --test")
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU is available to torch")
    with tempfile.TemporaryDirectory() as folder:
        os.environ["SSOLE_CACHE"] = f"{folder}/cache"  # decoded images go with the files they came from
        pieces: dict[str, Callable[[], dict[str, Any]]] = {
            "loss": loss_piece,
            "cifar10": lambda: cifar10_piece(args.data, args.test, args.minutes, Path(folder)),
            "views": lambda: views_piece(batches={32: 2048, 224: 256}, device="cuda"),
            "step": lambda: step_piece(step_configs(Path(folder) / "photographs"), steps=40, blocks=7),
        }
        figures = pieces[args.piece]()
    result = {"piece": args.piece, "gpu": torch.cuda.get_device_name(), **hardware(), **figures}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
