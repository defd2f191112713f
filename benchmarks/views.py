"""Benchmark of views: views a second of `ssole.make_views` and of other pipelines, on a CPU.

    python benchmarks/views.py --out benchmarks/results/views.json --plot views.svg
    python benchmarks/views.py --data cifar10-train.parquet --out ...      32-pixel views of those images
    python benchmarks/views.py --rounds 1 --seconds 0.5                    a quick look

Every contestant makes the same views: SimCLR's random resized crop, flip, colour jitter, grey, Gaussian blur (at 32
pixels, where SimCLR has none, also without), normalisation. Images are decoded beforehand, because decoding costs
all of them the same. Blocks of the contestants alternate; medians over rounds, and the ratio within each round. A data
loader's workers are started and busy before a block is timed, and idle while others are.
Needs an idle machine with 2 cores, and kornia: pip install 'ssole[bench]'.
"""

from __future__ import annotations

import argparse
import statistics
import time
import warnings
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset

from measure import (
    Rates,
    UntilStopped,
    draw_bars,
    in_full_swing,
    installed,
    peak_extra_bytes,
    photographs,
    ratio,
    save,
    take_turns,
    uniform_images,
)
from ssole import Crop, ViewRecipe, make_views

WORKERS = 2  # workers of a data loader, or threads of a contestant without one: one per core
# torchvision and kornia want the size of a blur: SimCLR's tenth of a large image, but at least what ssole has for small
# ones, three standard deviations to each side. (In ssole that is all; the rest cannot be seen in 8 bits.)
BLUR_SIZE = {32: 13, 224: 23}
LARGE = 8  # batches at once in the call whose memory is measured
COLOURS = {
    "ssole": "#0072b2",
    "ssole, images of different sizes": "#0072b2",
    "torchvision v2, Pillow": "#d55e00",
    "torchvision v2, tensors": "#e69f00",
    "kornia": "#009e73",
}


@dataclass(frozen=True, kw_only=True)
class Setting:
    """Views of one size, from a batch of decoded images."""

    size: int
    views: int
    blur: bool
    """Whether views are blurred. SimCLR blurs large images and not small ones."""
    images: NDArray[np.uint8]
    """(B, H, W, 3): a batch."""

    @property
    def name(self) -> str:
        return f"{self.size} px, {self.views} views, {'' if self.blur else 'no '}blur"

    @property
    def recipe(self) -> ViewRecipe:
        """SimCLR's views."""
        return ViewRecipe(crops=(Crop(count=self.views, size=self.size),), blur=0.5 * self.blur)


def ssole_views(setting: Setting) -> Callable[[int], object]:
    batch = torch.from_numpy(setting.images).permute(0, 3, 1, 2).contiguous()
    ids, recipe = torch.arange(len(batch)), setting.recipe
    return lambda number: make_views(batch, ids, recipe=recipe, seed=0, epoch=number)


def ssole_views_of_a_list(setting: Setting) -> Callable[[int], object]:
    """The same images as a list of slightly different sizes, like photographs in a folder."""
    batch = [
        torch.from_numpy(image[: len(image) - number % 7, : image.shape[1] - number % 5]).permute(2, 0, 1).contiguous()
        for number, image in enumerate(setting.images)
    ]
    ids, recipe = torch.arange(len(batch)), setting.recipe
    return lambda number: make_views(batch, ids, recipe=recipe, seed=0, epoch=number)


def kornia_views(setting: Setting) -> Callable[[int], object]:
    """kornia on a batch of float tensors, every view with parameters of its own; two threads, as ssole."""
    from kornia import augmentation as K

    recipe = setting.recipe
    (crop,) = recipe.crops
    blurs = []  # one would cost time even at probability 0
    if recipe.blur:
        blurs = [K.RandomGaussianBlur((BLUR_SIZE[crop.size],) * 2, recipe.blur_sigma, p=recipe.blur)]
    operations = [
        K.RandomResizedCrop((crop.size, crop.size), scale=crop.scale, ratio=crop.ratio, align_corners=False),
        K.RandomHorizontalFlip(p=recipe.hflip),
        K.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue, p=recipe.jitter),
        K.RandomGrayscale(p=recipe.grey),
        *blurs,
        K.Normalize(mean=torch.tensor(recipe.mean), std=torch.tensor(recipe.std)),
    ]
    augment = K.AugmentationSequential(*operations, data_keys=["input"])
    batch = torch.from_numpy(setting.images).permute(0, 3, 1, 2).contiguous()

    @torch.no_grad()
    def make(number: int) -> object:
        return augment(batch.float().div_(255).repeat_interleave(crop.count, dim=0))

    return make


def torchvision_transform(recipe: ViewRecipe, *, pillow: bool) -> Callable[[Any], torch.Tensor]:
    """torchvision's own transforms, from a Pillow image or a uint8 tensor (3, H, W) to a float32 view (3, S, S)."""
    from torchvision.transforms import v2

    (crop,) = recipe.crops
    jitter = v2.ColorJitter(recipe.brightness, recipe.contrast, recipe.saturation, recipe.hue)
    return v2.Compose(
        [
            v2.RandomResizedCrop(crop.size, scale=crop.scale, ratio=crop.ratio),
            v2.RandomHorizontalFlip(recipe.hflip),
            v2.RandomApply([jitter], recipe.jitter),
            v2.RandomGrayscale(recipe.grey),
            *(
                [v2.RandomApply([v2.GaussianBlur(BLUR_SIZE[crop.size], recipe.blur_sigma)], recipe.blur)]
                if recipe.blur
                else []
            ),
            *([v2.PILToTensor()] if pillow else []),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(recipe.mean, recipe.std),
        ]
    )


class Views(Dataset):  # type: ignore[type-arg]
    """Data set whose items are the views of one image, as a list that the loader stacks by view."""

    def __init__(self, setting: Setting, *, pillow: bool) -> None:
        self._images, self._pillow, self._count = setting.images, pillow, setting.views
        self._tensors = torch.from_numpy(setting.images).permute(0, 3, 1, 2).contiguous()
        self._transform = torchvision_transform(setting.recipe, pillow=pillow)

    def __getitem__(self, i: int) -> list[torch.Tensor]:
        from PIL import Image

        image = Image.fromarray(self._images[i]) if self._pillow else self._tensors[i]
        return [self._transform(image) for _ in range(self._count)]


def torchvision_loader(setting: Setting, *, pillow: bool) -> DataLoader[Any]:
    """Data loader with worker processes of one thread each, and the usual two batches ahead."""
    order = UntilStopped(len(setting.images), len(setting.images))
    return DataLoader(
        Views(setting, pillow=pillow),
        batch_sampler=order,  # type: ignore[arg-type]
        num_workers=WORKERS,
        persistent_workers=True,
    )


def rate_of_calls(make: Callable[[int], object], views: int, seconds: float) -> float:
    """Views a second of calls in this process, over at least so many seconds."""
    make(0)  # fills caches that another contestant has emptied
    start, number = time.perf_counter(), 0
    while (passed := time.perf_counter() - start) < seconds or not number:
        number += 1
        make(number)
    return number * views / passed


def rate_of_loader(loader: DataLoader[Any], views: int, seconds: float) -> float:
    """Views a second of a data loader whose reader does nothing else, over at least so many seconds."""
    with in_full_swing(loader) as batches:
        start, number = time.perf_counter(), 0
        # workers deliver by turns, often in close succession: count whole turns
        while (passed := time.perf_counter() - start) < seconds or not number or number % WORKERS:
            next(batches)
            number += 1
        return number * views / passed


def contestants(setting: Setting, seconds: float) -> dict[str, Callable[[], float]]:
    """Blocks of every contestant by name; each gives views a second."""
    views = len(setting.images) * setting.views
    calls = {"ssole": ssole_views(setting)}
    if installed("kornia"):
        calls["kornia"] = kornia_views(setting)
    if setting.size > 64:  # small images of one data set share a size
        calls["ssole, images of different sizes"] = ssole_views_of_a_list(setting)
    loaders = {
        "torchvision v2, Pillow": torchvision_loader(setting, pillow=True),
        "torchvision v2, tensors": torchvision_loader(setting, pillow=False),
    }
    blocks: dict[str, Callable[[], float]] = {
        **{name: partial(rate_of_calls, make, views, seconds) for name, make in calls.items()},
        **{name: partial(rate_of_loader, loader, views, seconds) for name, loader in loaders.items()},
    }
    return {name: blocks[name] for name in COLOURS if name in blocks}


def memory(setting: Setting) -> dict[str, Any]:
    """Memory of one large call of `make_views` beside its images, and the part of it that the views take."""
    make = ssole_views(setting)
    extra = peak_extra_bytes(lambda: make(0))
    views = len(setting.images) * setting.views
    return {
        "setting": setting.name,
        "images": len(setting.images),
        "peak_extra_mb": None if extra is None else extra / 1e6,
        "of_it_views_mb": views * 3 * setting.size**2 * 4 / 1e6,
    }


def measure(setting: Setting, rounds: int, seconds: float) -> dict[str, Any]:
    """Rates and ratios of one setting, printed as a table and returned to be saved."""
    rates = take_turns(contestants(setting, seconds), rounds)
    ours = rates["ssole"]
    ratios = {name: ratio(ours, theirs) for name, theirs in rates.items() if not name.startswith("ssole")}
    print(f"\n| {setting.name} | views/s | ssole is faster by | in single rounds |\n|---|---|---|---|")
    for name, values in rates.items():
        faster = ratios.get(name)
        spread = f"{faster['median']:.1f}x | {faster['least']:.1f}x to {faster['largest']:.1f}x" if faster else " | "
        print(f"| {name} | {statistics.median(values):,.0f} | {spread} |", flush=True)
    height, width = setting.images.shape[1:3]
    shape = {
        "size": setting.size,
        "views": setting.views,
        "blur": setting.blur,
        "batch": len(setting.images),
        "images": [height, width],
    }
    return {**shape, "views_per_second": rates, "ssole_is_faster_by": ratios}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", help="images of one size for the 32-pixel views; by default parts of photographs")
    parser.add_argument("--sizes", type=int, nargs="+", choices=[32, 224], default=[32, 224])
    parser.add_argument("--views", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--batch", type=int, nargs=2, default=[256, 32], metavar=("AT_32", "AT_224"))
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--seconds", type=float, default=3.0, help="of a contestant in a round, at least")
    parser.add_argument("--threads", type=int, default=WORKERS)
    parser.add_argument("--out", type=Path, help="JSON file to write")
    parser.add_argument("--plot", type=Path, help="picture to write (.svg, .png)")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    warnings.filterwarnings("ignore", module="kornia")
    batches = dict(zip((32, 224), args.batch, strict=True))
    # 224-pixel views come from photographs of about the size to which those of ImageNet are often reduced
    sources = {32: partial(uniform_images, args.data), 224: partial(photographs, height=300, width=400)}
    images = {size: sources[size](LARGE * batches[size])[: LARGE * batches[size]] for size in args.sizes}
    large = [Setting(size=size, views=max(args.views), blur=size > 64, images=images[size]) for size in args.sizes]
    of_memory = [memory(setting) for setting in large]  # first, before anyone else has taken memory
    settings = [
        Setting(size=size, views=views, blur=blur, images=images[size][: batches[size]])
        for size in args.sizes
        for blur in ((False, True) if size == 32 else (True,))
        for views in args.views
    ]
    rows = {setting.name: measure(setting, args.rounds, args.seconds) for setting in settings}
    for row in of_memory:
        print(f"memory of a call: {row}")
    if args.out:
        how = {"rounds": args.rounds, "seconds": args.seconds, "threads": args.threads, "workers": WORKERS}
        packages = ("torchvision", "kornia", "pillow")
        save(args.out, {**how, "rows": list(rows.values()), "memory": of_memory}, packages=packages)
    if args.plot:
        panels: dict[str, Rates] = {name: row["views_per_second"] for name, row in rows.items()}
        draw_bars(args.plot, panels, "views a second", COLOURS)


if __name__ == "__main__":
    main()
