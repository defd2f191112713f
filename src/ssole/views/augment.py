"""Batched augmentation on tensors: the same operations on CPU and GPU, V views of every image at once.

Images are taken in blocks that bound the memory, and their views made in chunks that, on a CPU, stay near the cores'
caches from crop to normalisation; or, where a single view fills a chunk's share, one at a time.
(Chunks side by side in Python threads were half as fast: operations of microseconds queue for the interpreter.)

Shape suffixes: B images, V views of a crop group, N = B V views, C channels, S side of the crop.
"""

from __future__ import annotations

from functools import partial
from itertools import accumulate, pairwise
from typing import TypeAlias

import torch
import torch.nn.functional as F

from ssole.config import Crop, ViewRecipe
from ssole.runtime import reuse_freed_blocks
from ssole.views.colour import JITTER_FLOATS, jitter_of, normalisation_of, photometric, place_of_hue
from ssole.views.crop import TAPS_FLOATS, Images, crop_taps, crop_views, filters_whole, longest_side
from ssole.views.recipe import ViewParams, sample_params
from ssole.views.single import make_one_by_one

# Floats of a chunk at most. CPU: 3 MB, where two cores' L2 caches hold the better part and launching operations costs
# little. Elsewhere 256 MB, of views or of the images that they are cut from, whichever are larger. Temporaries are
# about six times that, beside the result.
_CPU_CHUNK, _DEVICE_CHUNK = 3 << 18, 1 << 26
_CPU_BLOCK = 1 << 20  # floats that are held for the views of a block of images, beside the views
_ALONE = 100_000  # floats of a view, from which a CPU makes one view at a time
_PADDED_TOGETHER = 32  # images of different sizes that an accelerator gets as one tensor
_Chunk: TypeAlias = tuple[slice, int | None]
"""Views, and where in all of their orders hue comes: see :func:`ssole.views.colour.photometric`."""


@torch.no_grad()
def make_views(images: Images, ids: torch.Tensor, *, recipe: ViewRecipe, seed: int, epoch: int) -> list[torch.Tensor]:
    """Make the views of a batch of images.

    Every random parameter is a pure function of (seed, epoch, id, view): an image's views do not depend on its batch,
    nor on the device.

    Args:
        images: uint8 or uint16 (B, C, H, W), or B such tensors (C, h, w) of different sizes.
        ids: int64 (B,), each image's index in its data set.
        recipe: what to sample.
        seed, epoch: any integers.

    Returns:
        For each crop group a float32 tensor (B, V_g, C, S_g, S_g), normalised by the recipe's mean and std, on the
        device of `images`.

    Raises:
        ValueError: images of another dtype or shape, another number of ids than of images, or colour operations on
            images that have not three channels.
    """
    channels, device = _check_images(images, ids, recipe)
    ids = ids.to(device, non_blocking=True)
    sizes = _sizes(images).to(device, non_blocking=True)
    if device.type == "cpu":
        reuse_freed_blocks()
    make = partial(_make, recipe=recipe, seed=seed, epoch=epoch, channels=channels)
    with torch.autocast(device.type, enabled=False):
        if isinstance(images, torch.Tensor) or device.type == "cpu":
            return make(images, ids, sizes)
        starts = range(0, len(images), _PADDED_TOGETHER)
        some = [slice(start, start + _PADDED_TOGETHER) for start in starts]
        parts = [make(_padded(images[part]), ids[part], sizes[part]) for part in some]
        return [torch.cat(groups) for groups in zip(*parts, strict=True)]


def _make(
    images: Images,
    ids: torch.Tensor,
    sizes: torch.Tensor,
    *,
    recipe: ViewRecipe,
    seed: int,
    epoch: int,
    channels: int,
) -> list[torch.Tensor]:
    """The views of images that, on an accelerator, are one tensor; crops stay within each image's own size."""
    groups, first = [], 0
    for crop in recipe.crops:
        numbers = torch.arange(first, first + crop.count, device=ids.device)
        params = sample_params(recipe, crop, ids, numbers, sizes, seed=seed, epoch=epoch)
        out = torch.empty(len(ids) * crop.count, channels, crop.size, crop.size, device=ids.device)
        alone = out.device.type == "cpu" and out[0].numel() >= _ALONE
        make = make_one_by_one if alone else _make_together
        for block in _blocks(images, crop, channels):
            views = slice(block.start * crop.count, block.stop * crop.count)
            make(images[block], params[views], recipe, out[views])
        groups.append(out.unflatten(0, (len(ids), crop.count)))
        first += crop.count
    return groups


def _blocks(images: Images, crop: Crop, channels: int) -> list[slice]:
    """Images for whose views so much is held at once: the images as float32, taps, colour matrices."""
    longest = longest_side(images)
    floats = crop.count * max(TAPS_FLOATS * max(crop.size, longest), JITTER_FLOATS * channels**2)
    if filters_whole(images):
        floats = max(floats, channels * longest**2)
    return _evenly(len(images), floats, _CPU_BLOCK if images[0].device.type == "cpu" else _DEVICE_CHUNK)


def _make_together(images: Images, params: ViewParams, recipe: ViewRecipe, out: torch.Tensor) -> None:
    """Fill out (N, C, S, S) with the views of a crop group, of which every image has as many, many at a time."""
    order, chunks = _chunks(params, images, out)
    image_of_N, params = order // (len(out) // len(images)), params[order]
    # for all chunks at once: calls on tensors of a few numbers take as long as some on views
    taps, jitter = crop_taps(images, params, out.shape[-1]), jitter_of(params, out.shape[1])
    normalisation = normalisation_of(params, recipe)
    sources = images
    if filters_whole(images):
        sources = (images if isinstance(images, torch.Tensor) else _padded(images)).to(torch.float32)
    for views, hue_at in chunks:
        x_NCSS = crop_views(sources, image_of_N[views], params.box[views], taps.of(views))
        y_NCSS = photometric(x_NCSS, params[views], jitter.of(views), normalisation.of(views), recipe, hue_at)
        out.index_copy_(0, order[views], y_NCSS)


def _chunks(params: ViewParams, images: Images, out: torch.Tensor) -> tuple[torch.Tensor, list[_Chunk]]:
    """An order of the views, and chunks of it that fit; on a CPU only of views that have hue in the same place."""
    channels, size = out.shape[1:3]
    if out.device.type != "cpu":
        largest = max(out[0].numel(), images[0].numel())  # of every view, its whole image is a part of the product
        order = torch.arange(len(out), device=out.device)
        return order, [(some, None) for some in _evenly(len(out), largest, _DEVICE_CHUNK)]
    width = longest_side(images) if filters_whole(images) else size  # of whole images, once rows are made
    largest = channels * size * max(size, width)
    hue_at, order = place_of_hue(params).masked_fill_(~params.jitter, -1).sort(stable=True)
    places, counts = (values.tolist() for values in hue_at.unique_consecutive(return_counts=True))
    chunks = [
        (slice(first + some.start, first + some.stop), place)
        for place, first, count in zip(places, accumulate(counts, initial=0), counts, strict=False)
        for some in _evenly(count, largest, _CPU_CHUNK)
    ]
    return order, chunks


def _evenly(count: int, floats: int, limit: int) -> list[slice]:
    """Slices of about the same size, of things of so many floats that `limit` holds them; or of single ones."""
    parts = -(-count // max(1, limit // floats))
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def _sizes(images: Images) -> torch.Tensor:
    if isinstance(images, torch.Tensor):
        return torch.tensor([images.shape[-2:]])
    return torch.tensor([image.shape[-2:] for image in images])


def _padded(images: Images) -> torch.Tensor:
    height, width = _sizes(images).amax(dim=0).tolist()
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])


def _check_images(images: Images, ids: torch.Tensor, recipe: ViewRecipe) -> tuple[int, torch.device]:
    """Channels and device."""
    if len(images) != len(ids):
        raise ValueError(f"as many ids as images are needed, got {len(ids)} ids and {len(images)} images")
    if not len(images):
        raise ValueError("no images were given; a batch holds at least one")
    dims, first = (4 if isinstance(images, torch.Tensor) else 3), images[0]
    for one in [images] if isinstance(images, torch.Tensor) else images:
        right = one.dtype in (torch.uint8, torch.uint16) and one.dim() == dims and 0 not in one.shape
        if not right or one.shape[-3] != first.shape[-3] or one.dtype != first.dtype:
            raise ValueError(
                "images must be uint8 or uint16 (B, C, H, W), or a list of such (C, h, w) with the same C and dtype; "
                f"got {one.dtype} {tuple(one.shape)}"
            )
    channels = first.shape[0]
    if recipe.mean is None or recipe.std is None:
        raise ValueError("the recipe has no mean and std to normalise with: give one of each per channel")
    if len(recipe.mean) != channels:
        raise ValueError(f"the recipe normalises {len(recipe.mean)} channels and the images have {channels}")
    if channels != 3 and (needs := recipe.colour_operations):
        raise ValueError(
            f"the recipe's {' and '.join(needs)} need red, green and blue, and the images have {channels} channels: "
            "set them to 0, or use the preset 'channels'"
        )
    return channels, first.device
