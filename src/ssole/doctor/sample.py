"""Measured on a sample of the images, decoded as training would: channel statistics, decode rate and view rate."""

from __future__ import annotations

import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import torch

from ssole.config import ViewRecipe
from ssole.data.base import Source, evenly_spaced
from ssole.data.decode import decode
from ssole.data.store import mean_and_std, moments
from ssole.doctor.scan import Seen
from ssole.runtime import decoding_threads
from ssole.views import make_views

MOST_IMAGES = 256
KEPT = 32  # decoded images to make views of; photographs of many megapixels would fill the memory otherwise
SECONDS = 4.0  # for each of the measurements


@dataclass(frozen=True, kw_only=True)
class ChannelStatistics:
    """Mean and standard deviation of each channel in [0, 1], each image counting alike."""

    mean: list[float]
    std: list[float]
    images: int
    """How many were measured."""


@dataclass(frozen=True, kw_only=True)
class Rate:
    """Something per second."""

    value: float
    threads: int
    images: int
    """How many images were measured on."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """Decoded images, and what decoding them told."""

    images: list[torch.Tensor]
    """uint8 (3, h, w), at most 32; of a recipe with channels, uint8 or uint16 (C, h, w)."""
    ids: torch.Tensor
    """int64, their indices in the source."""
    statistics: ChannelStatistics
    decode: Rate
    """Images read and decoded per second."""

    def batch(self, size: int, device: torch.device) -> tuple[torch.Tensor | list[torch.Tensor], torch.Tensor]:
        """`size` images and their ids, repeated where there are fewer; one tensor if they share a size."""
        images = [self.images[i % len(self.images)].to(device) for i in range(size)]
        same = len({image.shape for image in images}) == 1
        return (torch.stack(images) if same else images), torch.arange(size)


def draw_sample(source: Source, seen: Sequence[Seen], *, shrink_to: int, channels: int | None = None) -> Sample:
    """Decode images spread over the set, with as many threads as training, until there are 256 or time is up."""
    count = min(MOST_IMAGES, len(seen))
    chosen = [seen[k].index for k in evenly_spaced(len(seen), count)]
    wanted = [i for first in range(8) for i in chosen[first::8]]  # covers the set however early the time is up

    def decoded(i: int) -> torch.Tensor:
        return decode(source.read(i), where=source.id(i), shrink_to=shrink_to, channels=channels)

    kept: list[torch.Tensor] = []
    measured: list[torch.Tensor] = []
    seconds = 0.0
    together = 4 * decoding_threads()
    with ThreadPoolExecutor(decoding_threads(), thread_name_prefix="ssole-doctor") as pool:
        while len(measured) < count and seconds < SECONDS:
            begin = time.perf_counter()
            images = list(pool.map(decoded, wanted[len(measured) : len(measured) + together]))
            seconds += time.perf_counter() - begin
            kept += images[: KEPT - len(kept)]
            measured += [moments(image) for image in images]
    mean, std = mean_and_std(measured)
    return Sample(
        images=kept,
        ids=torch.tensor(wanted[: len(kept)]),
        statistics=ChannelStatistics(mean=mean, std=std, images=len(measured)),
        decode=Rate(value=len(measured) / seconds, threads=decoding_threads(), images=len(measured)),
    )


def view_rate(sample: Sample, recipe: ViewRecipe, device: torch.device) -> Rate:
    """Views made of the sample's images per second, on the device that trains."""
    images, ids = sample.batch(len(sample.images), device)
    make_views(images, ids, recipe=recipe, seed=0, epoch=0)  # the first call pays for what later ones find ready
    wait_for(device)
    begin, epoch = time.perf_counter(), 0
    while time.perf_counter() - begin < SECONDS / 4:
        epoch += 1
        make_views(images, ids, recipe=recipe, seed=0, epoch=epoch)
        wait_for(device)
    made = epoch * len(ids) * recipe.views
    return Rate(value=made / (time.perf_counter() - begin), threads=torch.get_num_threads(), images=len(ids))


def wait_for(device: torch.device) -> None:
    """Until the device has done all it was asked to, so that a clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
