"""Measurements that need a CUDA GPU, piece by piece.

    python benchmarks/gpu_suite.py loss --out benchmarks/results/loss-h200.json
    python benchmarks/gpu_suite.py cifar10 --data cifar10-train.parquet --test cifar10-test.parquet --out ...

Runs from a checkout too (PYTHONPATH=src). `loss` needs torch alone; `cifar10` what the package depends on. Each piece
stays under 9 minutes, prints a table and returns what is saved.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

import ssole
from loss import GRID, embeddings, gradient, hardware, oracle, textbook
from ssole.config import PretrainConfig
from ssole.data.loader import ImageStore
from ssole.data.sources import open_source
from ssole.evaluation.protocols import knn_evaluator
from ssole.losses import SSOLELoss


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
    stores = [ImageStore(open_source(spec), progress=False) for spec in (data, test)]
    augment = config.augment
    return knn_evaluator(*stores, image_size=augment.image_size, mean=augment.mean, std=augment.std)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("piece", choices=["loss", "cifar10"])
    parser.add_argument("--out", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--data", help="cifar10: parquet file of the training images")
    parser.add_argument("--test", help="cifar10: parquet file of the test images")
    parser.add_argument("--minutes", type=float, default=6.0, help="cifar10: training time to aim for")
    args = parser.parse_args()
    if args.piece == "cifar10" and not (args.data and args.test):
        parser.error("the cifar10 piece needs --data and --test")
    if not torch.cuda.is_available():
        parser.error("no CUDA GPU is available to torch")
    if args.piece == "loss":
        figures = loss_piece()
    else:
        with tempfile.TemporaryDirectory() as folder:
            figures = cifar10_piece(args.data, args.test, args.minutes, Path(folder))
    result = {"piece": args.piece, "gpu": torch.cuda.get_device_name(), **hardware(), **figures}
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n")
    print(f"saved {args.out}")


if __name__ == "__main__":
    main()
