"""Forward + backward of SSOLELoss against a textbook version: torch.linalg.svdvals and plain autograd.

    python benchmarks/loss.py                       # the whole grid on 2 threads
    python benchmarks/loss.py --shape 256 8 4096    # one shape

The grid needs a few minutes and an idle machine. Prints a table and saves it to benchmarks/results/ as JSON. Times are
medians of interleaved runs. Errors are relative to the gradient of the textbook version in float64.
"""

from __future__ import annotations

import argparse
import math
import statistics
import time
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from measure import peak_extra_bytes, save, take_turns
from ssole.losses import SSOLELoss

# (B, V, D), then the speedup asked for.
GRID: dict[tuple[int, int, int], float] = {
    (8, 2, 16): 1.0,
    (32, 2, 128): 1.0,
    (64, 4, 128): 1.0,
    (64, 12, 256): 1.0,
    (128, 2, 512): 1.0,
    (128, 3, 1024): 1.0,
    (128, 4, 4096): 5.0,
    (256, 2, 128): 1.0,
    (256, 2, 512): 1.0,
    (256, 2, 2048): 6.0,
    (256, 8, 4096): 8.0,
    (512, 2, 128): 1.0,
    (512, 4, 512): 2.0,
    (1024, 2, 512): 1.5,
}


def sum_of_svdvals(a: Tensor) -> Tensor:
    """Nuclear norms, which autograd differentiates."""
    return torch.linalg.svdvals(a).sum(-1)


def textbook(z: Tensor, norm: Callable[[Tensor], Tensor] = sum_of_svdvals, largest: float = 1 - 1e-6) -> Tensor:
    """SSOLE as one would write it down, by nuclear norms of the deviations and of the views."""
    z = torch.nn.functional.normalize(z, dim=-1)
    n_images, n_views, _ = z.shape
    low = (norm(z - z.mean(1, keepdim=True)) / (n_views - 1)).square().mean()
    r = norm(z.transpose(0, 1))
    c1 = (n_images**2 / r**2 - 1) / (n_images - 1)
    # Held off r = B, where this form of the formula has no gradient.
    angle = torch.asin((r / n_images).clamp(max=largest)) - math.asin(1 / math.sqrt(n_images))
    c2 = (n_images * torch.cos(angle) ** 2 - 1) / (n_images - 1)
    return low + 0.6 * (0.5 * c1 + 0.5 * c2).mean()


def embeddings(shape: tuple[int, int, int], seed: int = 0) -> Tensor:
    """Views of an image at a cosine of about 0.8, images in random directions."""
    n_images, n_views, dims = shape
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(n_images, 1, dims, generator=generator)
    return common + 0.5 * torch.randn(n_images, n_views, dims, generator=generator)


def gradient(loss: Callable[[Tensor], Tensor], z: Tensor) -> Tensor:
    leaf = z.clone().requires_grad_()
    loss(leaf).backward()
    assert leaf.grad is not None
    return leaf.grad


def oracle(z: Tensor) -> Tensor:
    """float64 gradient, independent of the package: polar factors from an SVD, null modes dropped, the rest by
    autograd.
    """
    return gradient(partial(textbook, norm=by_polar_factor, largest=math.inf), z.double())


def by_polar_factor(a: Tensor) -> Tensor:
    """Nuclear norms tr(P^T A), P the polar factor held constant: the same gradient."""
    with torch.no_grad():
        u, s, vh = torch.linalg.svd(a, full_matrices=False)
        polar = (u * (s > 1e-12 * s[..., :1])[..., None, :]) @ vh
    return (polar * a).sum((-2, -1))


def seconds(loss: Callable[[Tensor], Tensor], z: Tensor) -> float:
    leaf = z.detach().requires_grad_()
    start = time.perf_counter()
    loss(leaf).backward()
    return time.perf_counter() - start


def measure(shape: tuple[int, int, int], target: float, budget: float) -> dict[str, Any]:
    z = embeddings(shape)
    exact = oracle(z)
    losses: dict[str, Callable[[Tensor], Tensor]] = {"textbook": textbook, "ssole": SSOLELoss()}
    row: dict[str, Any] = {"shape": shape, "target": target}
    for name, loss in losses.items():
        row[f"{name}_gradient_error"] = float((gradient(loss, z).double() - exact).norm() / exact.norm())
        extra = peak_extra_bytes(partial(seconds, loss, z))
        row[f"{name}_peak_extra_mb"] = math.nan if extra is None else extra / 1e6
    runs = {name: partial(seconds, loss, z) for name, loss in losses.items()}
    row["repeats"] = int(min(200, max(5, budget / sum(min(run(), run()) for run in runs.values()))))
    for name, times in take_turns(runs, row["repeats"]).items():
        row[f"{name}_ms"] = 1e3 * statistics.median(times)
    row["speedup"] = row["textbook_ms"] / row["ssole_ms"]
    return row


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--shape",
        type=int,
        nargs=3,
        metavar=("B", "V", "D"),
        help="this shape only; saved only with --out",
    )
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--budget", type=float, default=12.0, help="seconds of timing for each shape")
    parser.add_argument("--out", type=Path, help="JSON file to write")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", "The high-rank term has")
    grid = {tuple(args.shape): GRID.get(tuple(args.shape), 1.0)} if args.shape else GRID

    print(
        "| B, V, D | textbook ms | SSOLELoss ms | speedup | asked "
        "| gradient error: textbook | SSOLELoss | extra MB: textbook | SSOLELoss |"
    )
    print("|---|---|---|---|---|---|---|---|---|")
    rows = []
    for shape, target in grid.items():
        row = measure(shape, target, args.budget)
        rows.append(row)
        print(
            f"| {', '.join(map(str, shape))} | {row['textbook_ms']:.2f} | {row['ssole_ms']:.2f} "
            f"| {row['speedup']:.1f}x | {target:g}x "
            f"| {row['textbook_gradient_error']:.1e} | {row['ssole_gradient_error']:.1e} "
            f"| {row['textbook_peak_extra_mb']:.0f} | {row['ssole_peak_extra_mb']:.0f} |",
            flush=True,
        )
    if args.out:
        save(args.out, {"rows": rows}, packages=())


if __name__ == "__main__":
    main()
