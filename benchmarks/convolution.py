"""Training step of the encoder with ordinary convolutions against `ssole.models.conv`, interleaved, on a CPU.

    python benchmarks/convolution.py --out benchmarks/results/convolution.json

Forward and backward of backbone and projector on random images; medians. Both have the same weights.
"""

from __future__ import annotations

import argparse
import copy
import json
import statistics
import time
from pathlib import Path

import torch
from torch import nn

from ssole.config import ModelConfig, from_dict, load_recipe
from ssole.models.conv import speed_up_small_maps
from ssole.models.encoder import create_encoder
from ssole.precision import resolve_precision
from ssole.training.run import environment

ENCODERS = {
    "cifar10-cpu": from_dict(load_recipe("cifar10-cpu")).model,
    "ResNet-18, 3x3 stem": ModelConfig(projector_dim=512, projector_hidden=1024),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--views", type=int, default=512, help="images in a step")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    dtype = resolve_precision(args.precision, "cpu")
    print(f"{args.views} images of 32x32, {dtype or torch.float32}, {args.threads} threads")
    print(f"{'encoder':22} {'ordinary':>10} {'ours':>10} {'ratio':>7}")
    rows = []
    for name, config in ENCODERS.items():
        plain = create_encoder(config, 32, seed=0).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        ordinary, ours = compare([plain, speed_up_small_maps(copy.deepcopy(plain))], args.views, args.repeats, dtype)
        rows.append({"encoder": name, "ordinary_s": ordinary, "ours_s": ours, "ratio": ordinary / ours})
        print(f"{name:22} {ordinary * 1e3:7.0f} ms {ours * 1e3:7.0f} ms {ordinary / ours:6.2f}x", flush=True)
    if args.out:
        settings = {"views": args.views, "repeats": args.repeats, "threads": args.threads, "dtype": str(dtype)}
        environ = {key: value for key, value in environment().items() if key != "command"}
        args.out.write_text(json.dumps({**settings, "rows": rows, "environment": environ}, indent=1) + "\n")


def compare(models: list[nn.Module], views: int, repeats: int, dtype: torch.dtype | None) -> list[float]:
    """Median seconds of a step of each model, taken in turns."""
    images = torch.randn(views, 3, 32, 32).contiguous(memory_format=torch.channels_last)
    times: list[list[float]] = [[] for _ in models]
    for repeat in range(repeats + 1):
        for model, seconds in zip(models, times, strict=True):
            model.zero_grad()
            start = time.perf_counter()
            with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
                z = model(images)
            z.float().square().mean().backward()
            if repeat:  # the first is a warmup
                seconds.append(time.perf_counter() - start)
    return [statistics.median(seconds) for seconds in times]


if __name__ == "__main__":
    main()
