"""Images a second of `ssole.pretrain` beside its roofline and beside lightly's SimCLR, on a CPU.

    python benchmarks/step.py --data cifar10-train.parquet --out benchmarks/results/step.json --plot step.svg
    python benchmarks/step.py --blocks 1 --steps 3         a quick look, on parts of photographs

- ssole: the recipe `cifar10-cpu` as a user runs it: images, views, logging and checkpoints included. Beside lightly
  also with SGD, which is what lightly has here, in place of the recipe's Muon. The encoder is compiled, as it is in
  runs of 500 steps and more where there is a C++ compiler; `--compile never` has it otherwise.
- roofline: the same encoder, loss and optimizer, fed random views that lie in memory already.
- lightly: its SimCLR with its transform, its loss and its head on the same backbone, from a data loader with 2 workers;
  by default (float32, its transform's own settings, blur among them), and with ssole's settings: no blur, and bfloat16
  and channels_last, which ssole has by default where the processor does.

All in one process and on as many threads: between blocks of its steps the training of ssole waits in an evaluator,
whose time it does not count, while the others run a block each. The first block warms up and is left out.
A table says where the time of a step goes. Needs an idle machine with 2 cores, and lightly: pip install 'ssole[bench]'.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from measure import Pictures, Rates, UntilStopped, draw_bars, in_full_swing, installed, ratio, save, uniform_images
from parts import Clock, parts_timed, train, where_time_goes
from ssole.config import PretrainConfig, apply_overrides, load
from ssole.models.backbone import create_backbone, feature_dim
from ssole.runtime import resolve_device, resolve_precision, synchronize
from ssole.training.step import Learner

WORKERS = 2  # of lightly's data loader: one for each core
COLOURS = {
    "ssole": "#0072b2",
    "roofline": "#8c959f",
    "lightly, bfloat16": "#e69f00",
    "lightly, by default": "#d55e00",
}

Block = Callable[[int], float]
"""Runs so many steps and gives the seconds they took."""


class Roofline:
    """Training step of a config without images and views: what a loop that costs nothing would reach."""

    def __init__(self, config: PretrainConfig, *, batches: int = 4) -> None:
        device = resolve_device(config.device)
        self.config, self.learner = config, Learner(config, device)
        if config.compile == "always":
            self.learner.compile()
        self.views = [random_views(config, seed, device) for seed in range(batches)]

    def __call__(self, steps: int) -> float:
        """Seconds of so many steps."""
        synchronize(self.learner.device)
        begun = time.perf_counter()
        for number in range(steps):
            self.learner.step_on_views(self.views[number % len(self.views)], lr=self.config.optim.lr)
        synchronize(self.learner.device)
        return time.perf_counter() - begun


def random_views(config: PretrainConfig, seed: int, device: torch.device) -> list[Tensor]:
    """Noise, of which the views of an image share a part, so that training on it goes as training on images does."""
    generator = torch.Generator().manual_seed(seed)

    def noise(views: int, size: int) -> Tensor:
        return torch.randn(config.batch_size, views, 3, size, size, generator=generator)

    crops = config.augment.crops
    return [(0.8 * noise(1, crop.size) + 0.6 * noise(crop.count, crop.size)).to(device) for crop in crops]


class Lightly:
    """SimCLR on CIFAR-10 as lightly's examples have it, with the backbone of a config.

    Its head and optimizer (SGD) are theirs too, and cost less than those of ssole's recipe.
    """

    def __init__(self, config: PretrainConfig, images: NDArray[np.uint8], *, bfloat16: bool) -> None:
        from lightly.data import LightlyDataset
        from lightly.loss import NTXentLoss
        from lightly.models.modules import SimCLRProjectionHead
        from lightly.transforms import SimCLRTransform

        size = config.augment.image_size
        settings = {"cj_strength": 0.5, "gaussian_blur": 0.0} if bfloat16 else {}
        transform = SimCLRTransform(input_size=size, **settings)
        self._loader: DataLoader[Any] = DataLoader(
            LightlyDataset.from_torch_dataset(Pictures(images), transform=transform),
            batch_sampler=UntilStopped(len(images), config.batch_size),  # type: ignore[arg-type]
            num_workers=WORKERS,
            persistent_workers=True,
        )
        backbone = create_backbone(config.model, size)
        features = feature_dim(backbone)
        self._model = nn.Sequential(backbone, SimCLRProjectionHead(features, features, 128)).train()
        self._layout = torch.channels_last if bfloat16 else torch.contiguous_format
        self._model.to(memory_format=self._layout)  # type: ignore[call-overload]
        self._bfloat16 = bfloat16
        self._loss = NTXentLoss()
        self._optimizer = torch.optim.SGD(self._model.parameters(), lr=0.06, momentum=0.9, weight_decay=5e-4)

    def __call__(self, steps: int) -> float:
        with in_full_swing(self._loader) as batches:
            for _ in range(WORKERS):  # what the workers had ready while no one trained
                self._step(next(batches))
            begun = time.perf_counter()
            for _ in range(steps):
                self._step(next(batches))
            return time.perf_counter() - begun

    def _step(self, batch: Any) -> None:
        views = [x.contiguous(memory_format=self._layout) for x in batch[0]]
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self._bfloat16):
            z0, z1 = (self._model(x) for x in views)
        loss = self._loss(z0.float(), z1.float())
        loss.backward()
        self._optimizer.step()
        self._optimizer.zero_grad()


def compete(
    config: PretrainConfig, images: NDArray[np.uint8], others: Mapping[str, Block], *, steps: int, blocks: int
) -> Rates:
    """Images a second of `ssole.pretrain` and the others, block by block in turns."""
    rates: Rates = {"ssole": [], **{name: [] for name in others}}

    def turn(_: nn.Module) -> dict[str, float]:
        for name, block in others.items():
            rates[name].append(steps * config.batch_size / block(steps))
        return {"block": 0.0}  # marks the line in the metrics

    metrics = train(config, images, turn, steps, blocks + 1)
    ends = [row["seconds"] for row in metrics if "block" in row]
    rates["ssole"] = [steps * config.batch_size / (end - begin) for begin, end in pairwise([0.0, *ends])]
    return {name: values[1:] for name, values in rates.items()}


def measure(config: PretrainConfig, images: NDArray[np.uint8], *, steps: int, blocks: int) -> dict[str, Any]:
    """Tables of one number of views, printed, and what is saved of them."""
    roofline = Roofline(config)
    others: dict[str, Block] = {"roofline": roofline}
    if config.augment.views == 2 and installed("lightly"):  # two views are what its SimCLR has
        if resolve_precision(config.precision, "cpu") is torch.bfloat16:
            others["lightly, bfloat16"] = Lightly(config, images, bfloat16=True)
        others["lightly, by default"] = Lightly(config, images, bfloat16=False)
    rates = compete(config, images, others, steps=steps, blocks=blocks)
    ratios = {name: ratio(rates["ssole"], values) for name, values in rates.items() if name != "ssole"}
    views = config.augment.views
    print(f"\n| {title(config)} | images/s | views/s | ssole has | in single blocks |\n|---|---|---|---|---|")
    for name, values in rates.items():
        times, median = ratios.get(name), statistics.median(values)
        spread = f"{times['median']:.2f}x | {times['least']:.2f}x to {times['largest']:.2f}x" if times else " | "
        print(f"| {name} | {median:,.0f} | {median * views:,.0f} | {spread} |", flush=True)

    parts = {"ssole": where_time_goes(config, images, steps), "roofline": time_of_roofline(roofline, steps)}
    print("\n| ms a step | ssole | roofline |\n|---|---|---|")
    for part, spent in parts["ssole"].items():
        print(f"| {part} | {spent:.2f} | {parts['roofline'].get(part, 0.0):.2f} |")
    setting = {
        "views": views,
        "batch_size": config.batch_size,
        "optimizer": config.optim.name,
        "compile": config.compile,
        "precision": str(resolve_precision(config.precision, "cpu") or torch.float32).removeprefix("torch."),
    }
    return {**setting, "images_per_second": rates, "ssole_has": ratios, "ms_a_step": parts}


def title(config: PretrainConfig) -> str:
    return f"{config.augment.views} views of {config.batch_size} images, {config.optim.name}"


def time_of_roofline(roofline: Roofline, steps: int) -> dict[str, float]:
    """Milliseconds of a step by part."""
    roofline(1)  # compiles anew if another encoder was compiled meanwhile
    clock = Clock()
    with parts_timed(clock):
        roofline(steps)
    clock.seconds["backward"] -= clock.seconds["optimizer"]
    return {part: 1e3 * spent / steps for part, spent in clock.seconds.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="images of one size; by default 10,000 parts of photographs, 32x32")
    parser.add_argument("--recipe", default="cifar10-cpu", help="backbone, projector and optimizer")
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4])
    parser.add_argument(
        "--batch", type=int, nargs="+", default=[256, 128], help="images in a step, for each of --views"
    )
    parser.add_argument("--blocks", type=int, default=9, help="of each contestant, after one that warms up")
    parser.add_argument("--steps", type=int, default=30, help="in a block")
    parser.add_argument("--compile", choices=("always", "never"), default="always", help="the encoder, as long runs do")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="picture to write (.svg, .png)")
    args = parser.parse_args()
    if len(args.views) != len(args.batch):
        parser.error(f"--batch needs a number for each of --views, got {args.batch} for {args.views}")
    torch.set_num_threads(args.threads)
    images = uniform_images(args.data, 10_000)
    recipe = load(args.recipe, device="cpu", compile=args.compile)
    rows = {}
    for views, batch in zip(args.views, args.batch, strict=True):
        config = apply_overrides(recipe, {"views": views, "batch_size": batch})
        # beside lightly also with its kind of optimizer: Muon learns several times faster, and its steps cost more
        for optimizer in dict.fromkeys([config.optim.name, "sgd"] if views == 2 else [config.optim.name]):
            config = apply_overrides(config, {"optim.name": optimizer})
            rows[title(config)] = measure(config, images, steps=args.steps, blocks=args.blocks)
    if args.out:
        how = {"recipe": args.recipe, "steps": args.steps, "blocks": args.blocks, "threads": args.threads}
        packages = ("torchvision", "lightly", "pillow")
        save(args.out, {**how, "workers": WORKERS, "rows": list(rows.values())}, packages=packages)
    if args.plot:
        panels: dict[str, Rates] = {name: row["images_per_second"] for name, row in rows.items()}
        draw_bars(args.plot, panels, "images a second", COLOURS)


if __name__ == "__main__":
    main()
