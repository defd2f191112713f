"""Training step of encoders, as timm and torch have them and as ssole trains them, interleaved, on a CPU.

    python benchmarks/encoder.py --out benchmarks/results/encoder.json

Forward and backward of backbone and projector on random images, channels last; medians. All start from one network:

- ordinary: timm's network. compiled: the same through `torch.compile`.
- ours: with the convolutions of `ssole.models.cpu`. ours, compiled: and with the batch norms of `ssole.models.cpu`.

Seconds to compile are those of a compiler that is loaded and has kept nothing (`--keep` leaves it what it has); 0 where
there was nothing to replace, so that it had just been compiled.
"""

from __future__ import annotations

import argparse
import copy
import os
import statistics
import tempfile
import time
from functools import partial
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn

from measure import save, take_turns
from ssole.config import Crop, ModelConfig, PretrainConfig, ViewRecipe, load
from ssole.models.backbone import create_encoder
from ssole.models.cpu import speed_up_compiled_batch_norms, speed_up_convolutions
from ssole.runtime import keep_freed_memory, resolve_precision


def encoder(backbone: str) -> ModelConfig:
    return ModelConfig(backbone=backbone, projector_dim=512, projector_hidden=1024)


ENCODERS = {  # config, images in a step of 512 at most, side
    "cifar10-cpu": (load("cifar10-cpu").model, 512, 32),
    "ResNet-18, 3x3 stem": (encoder("resnet18"), 256, 32),
    "ResNet-50, 3x3 stem": (encoder("resnet50"), 64, 32),
    "ResNet-18, 224 px": (encoder("resnet18"), 32, 224),
    "ConvNeXt-Atto, 64 px": (encoder("convnext_atto"), 64, 64),
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--encoders", nargs="+", choices=[*ENCODERS], default=[*ENCODERS])
    parser.add_argument("--views", type=int, default=512, help="images in a step at most")
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--precision", choices=["auto", "float32", "bfloat16"], default="auto")
    parser.add_argument("--keep", action="store_true", help="use what was compiled before")
    parser.add_argument("--out", type=Path)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    keep_freed_memory()
    dtype = resolve_precision(args.precision, "cpu")
    rows = []
    print("| ms a step | ordinary | compiled | ours | ours, compiled | gain | compiling |")
    print("|---|---|---|---|---|---|---|")
    for name in args.encoders:
        config, views, size = ENCODERS[name]
        views = min(views, args.views)
        contestants = networks(config, size)
        images = torch.randn(views, 3, size, size).contiguous(memory_format=torch.channels_last)
        torch.compiler.reset()  # it compiles no more than eight versions of a function
        first = {}
        with tempfile.TemporaryDirectory() as empty, patch.dict(os.environ):
            for key, model in contestants.items():
                if not args.keep:
                    os.environ["TORCHINDUCTOR_CACHE_DIR"] = f"{empty}/{len(first)}"
                first[key] = seconds(model, images, dtype)
        blocks = {key: partial(seconds, model, images, dtype) for key, model in contestants.items()}
        times = {key: statistics.median(each) for key, each in take_turns(blocks, args.repeats).items()}
        gain = times["ordinary"] / times["ours, compiled"]
        compiling = first["ours, compiled"] - times["ours, compiled"]
        cells = " | ".join(f"{1e3 * each:.0f}" for each in times.values())
        print(f"| {name}, {views} images | {cells} | {gain:.2f}x | {compiling:.0f} s |", flush=True)
        rows.append({"encoder": name, "views": views, "size": size, "seconds": times, "compiling_seconds": compiling})
    if args.out:
        how = {"repeats": args.repeats, "threads": args.threads, "dtype": str(dtype or torch.float32)}
        save(args.out, {**how, "rows": rows}, packages=("timm",))


def networks(model: ModelConfig, size: int) -> dict[str, nn.Module]:
    """The contestants, of the same weights."""
    config = PretrainConfig(model=model, augment=ViewRecipe(crops=(Crop(size=size),)))
    ordinary = create_encoder(config).to(memory_format=torch.channels_last).train()  # type: ignore[call-overload]
    compiled, ours, both = (copy.deepcopy(ordinary) for _ in range(3))
    speed_up_convolutions(ours)
    speed_up_compiled_batch_norms(speed_up_convolutions(both))
    for model in (compiled, both):
        model.compile(dynamic=False)
    return {"ordinary": ordinary, "compiled": compiled, "ours": ours, "ours, compiled": both}


def seconds(model: nn.Module, images: torch.Tensor, dtype: torch.dtype | None) -> float:
    """Of a forward and a backward pass."""
    model.zero_grad()
    start = time.perf_counter()
    with torch.autocast("cpu", dtype=dtype, enabled=dtype is not None):
        z = model(images)
    z.float().square().mean().backward()
    return time.perf_counter() - start


if __name__ == "__main__":
    main()
