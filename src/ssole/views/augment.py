"""Batched augmentation on tensors: V views of every image at once.

Images are taken in blocks that bound the memory. There are three routes from a block to its views, for speed:

- Many views at once on a CPU, in chunks that stay near its caches from crop to normalisation. A call of torch costs as
  much as the arithmetic of a small view, so that one call must serve many views.
- Large views on a CPU one at a time. One view then stays in the caches, and plain numbers select only the operations
  that it needs. The routes are equally fast at about 180 px (docs/views.md).
- All views at once on an accelerator: :mod:`ssole.views.device`.

(Chunks side by side in Python threads were half as fast: operations of microseconds queue for the interpreter.)

Shape suffixes: B images, V views of a crop group, N = B V views, C channels, S side of the view.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate, pairwise

import torch
import torch.nn.functional as F

from ssole.config import Crop, ViewRecipe
from ssole.runtime import copy_to, exact_matrix_products, reuse_freed_blocks
from ssole.views import device, geometry, photometric
from ssole.views.geometry import ImageBatch, filters_whole, image_sizes, longest_side
from ssole.views.params import ViewParams, sample_groups

_CHUNK = 3 << 18  # floats of a chunk at most: 3 MB, mostly within the L2 caches of two cores, while calls cost little
_BLOCK = 1 << 20  # floats held for the views of a block of images, beside the views
_DEVICE_BLOCK = 1 << 26  # floats of each of six tensors that an accelerator holds: of images, weights and views
_ONE_BY_ONE = 100_000  # floats; a CPU makes views of this size and more one at a time
_PADDED_TOGETHER = 32  # images of different sizes that an accelerator gets as one tensor


@torch.no_grad()
def make_views(
    images: ImageBatch,
    ids: torch.Tensor,
    *,
    recipe: ViewRecipe,
    seed: int,
    epoch: int,
    rows: Sequence[torch.Tensor] | None = None,
) -> list[torch.Tensor]:
    """Augmented, normalised views of a batch of images.

    Every random parameter is a pure function of (seed, epoch, id, view). So the views of an image do not depend on its
    batch or on the device.

    Args:
        images: uint8 or uint16 (B, C, H, W), or B such tensors (C, h, w) of different sizes.
        ids: int64 (B,), the index of each image in its data set.
        recipe: the settings of the views.
        seed, epoch: any integers.
        rows: what :class:`ssole.views.device.EpochRows` has drawn for these images, to draw nothing here. On an
            accelerator, for images of one size.

    Returns:
        For each crop group, a float32 tensor (B, V_g, C, S_g, S_g), normalised by the recipe's mean and std, on the
        device of `images`.

    Raises:
        ValueError: if images or ids have another type, dtype or shape, if there are not as many ids as images, or if
            the recipe has colour operations and the images do not have three channels.
    """
    channels, on = _check_images(images, ids, recipe)
    outs = [torch.empty(len(ids) * crop.count, channels, crop.size, crop.size, device=on) for crop in recipe.crops]
    # rounding to TF32 would move colours by 0.001
    with torch.autocast(on.type, enabled=False), exact_matrix_products(on):
        if on.type == "cpu":
            reuse_freed_blocks()
            _make_on_cpu(images, ids, outs, recipe, seed=seed, epoch=epoch)
        else:
            if rows is None:
                sizes = copy_to(image_sizes(images), on)
                rows = device.batch_rows(recipe, copy_to(ids, on), sizes, channels, seed=seed, epoch=epoch)
            _make_on_device(images, rows, outs, recipe)
    return [out.unflatten(0, (len(ids), crop.count)) for out, crop in zip(outs, recipe.crops, strict=True)]


def _make_on_device(
    images: ImageBatch, rows: Sequence[torch.Tensor], outs: list[torch.Tensor], recipe: ViewRecipe
) -> None:
    """Fill one tensor (N, C, S, S) for each crop group, on an accelerator."""
    for rows_BVF, out, crop in zip(rows, outs, recipe.crops, strict=True):
        for block in _device_blocks(images, crop):
            views = slice(block.start * crop.count, block.stop * crop.count)
            device.fill_views(_as_one_tensor(images[block]), rows_BVF[block], recipe, out[views])


def _make_on_cpu(
    images: ImageBatch, ids: torch.Tensor, outs: list[torch.Tensor], recipe: ViewRecipe, *, seed: int, epoch: int
) -> None:
    """Fill one tensor (N, C, S, S) for each crop group, on a CPU."""
    groups = sample_groups(recipe, ids, torch.tensor(image_sizes(images)), seed=seed, epoch=epoch)
    for out, (crop, params) in zip(outs, groups, strict=True):
        make = _make_one_by_one if out[0].numel() >= _ONE_BY_ONE else _make_many
        for block in _blocks(images, crop):
            views = slice(block.start * crop.count, block.stop * crop.count)
            make(images[block], params[views], recipe, out[views])


def _make_many(images: ImageBatch, params: ViewParams, recipe: ViewRecipe, out: torch.Tensor) -> None:
    """Fill out (N, C, S, S) with the views of a crop group, many at a time."""
    whole = filters_whole(images)
    if whole:
        images = _as_one_tensor(images)
    order, chunks = _chunks(params, images, out)
    image_of_N, params = order // (len(out) // len(images)), params[order]
    # For all chunks at once: calls on tensors of a few numbers take as long as some calls on views.
    rows, columns = geometry.crop_taps(images, params, out.shape[-1])
    jitter = photometric.jitter_of(params, out.shape[1])
    matrix, offset = photometric.last_normalisation(params, recipe)
    sources = images.to(torch.float32) if whole and isinstance(images, torch.Tensor) else images
    for views, hue_at in chunks:
        some = params[views]
        x_NCSS = geometry.crop_many(sources, image_of_N[views], some.box, rows.select(views), columns.select(views))
        if recipe.turn > 0:
            x_NCSS = geometry.on_chosen(x_NCSS, some.turns % 2 == 1, lambda y, _: y.mT)
        normalisation = (matrix[views], offset)
        y_NCSS = photometric.photometric_many(x_NCSS, some, jitter.select(views), normalisation, recipe, hue_at)
        out.index_copy_(0, order[views], y_NCSS)


def _make_one_by_one(images: ImageBatch, params: ViewParams, recipe: ViewRecipe, out: torch.Tensor) -> None:
    """Fill out (N, C, S, S) with the views of a crop group, one at a time, on a CPU. The same views, to rounding."""
    n_views, channels, size, _ = out.shape
    rows, columns = geometry.crop_taps(images, params, size)
    blurs, luma = photometric.blur_taps(params.sigma, size, recipe), photometric.luma_weights(channels, out.device)
    mean, std = (torch.tensor(values)[:, None, None] for values in (recipe.mean, recipe.std))
    for n, view in enumerate(params.per_view()):
        x_CSS = geometry.crop_one(images[n * len(images) // n_views], view.box, rows, columns, n)
        transposed = view.turns % 2 == 0  # crops come transposed, as an odd number of quarter turns needs them
        if view.jitter:
            x_CSS = photometric.jitter_one(x_CSS.flatten(1), view.order, view.factors, luma).view_as(x_CSS)
        if view.sigma > 0:
            x_CSS = photometric.blur_one(x_CSS, blurs, n, view.sigma, recipe)
            transposed = not transposed
        if view.grey:
            x_CSS = (luma @ x_CSS.flatten(1)).view(1, size, size)
        if view.solarize:
            x_CSS = photometric.solarize(x_CSS)
        torch.sub(x_CSS.mT if transposed else x_CSS, mean, out=out[n]).div_(std)


def _blocks(images: ImageBatch, crop: Crop) -> list[slice]:
    """Blocks of images that bound what a CPU holds for their views: images as float32, taps, colour matrices."""
    channels, longest = images[0].shape[0], longest_side(images)
    floats = crop.count * max(geometry.TAPS_FLOATS * max(crop.size, longest), photometric.JITTER_FLOATS * channels**2)
    if filters_whole(images):
        floats = max(floats, channels * longest**2)
    return _even_slices(len(images), floats, _BLOCK)


def _device_blocks(images: ImageBatch, crop: Crop) -> list[slice]:
    """Blocks of images that bound what an accelerator holds for their views."""
    channels, weights = images[0].shape[0], 2 * crop.size * longest_side(images)
    height, width = (max(sides) for sides in zip(*image_sizes(images), strict=True))
    floats = crop.count * max(channels * crop.size**2, channels * height * width, weights)
    together = len(images) if isinstance(images, torch.Tensor) else _PADDED_TOGETHER
    return _even_slices(len(images), floats, min(_DEVICE_BLOCK, together * floats))


def _chunks(params: ViewParams, images: ImageBatch, out: torch.Tensor) -> tuple[torch.Tensor, list[tuple[slice, int]]]:
    """Order in which views are made, sorted by where hue comes in their jitter, and the chunks of that order.

    A chunk is (slice, position of hue), -1 where no view is jittered.
    """
    channels, size = out.shape[1:3]
    width = longest_side(images) if filters_whole(images) else size  # of whole images, after their rows are summed
    largest = channels * size * max(size, width)
    hue_at, order = photometric.position_of_hue(params).masked_fill_(~params.jitter, -1).sort(stable=True)
    positions, counts = (values.tolist() for values in hue_at.unique_consecutive(return_counts=True))
    chunks = [
        (slice(first + some.start, first + some.stop), position)
        for position, first, count in zip(positions, accumulate(counts, initial=0), counts, strict=False)
        for some in _even_slices(count, largest, _CHUNK)
    ]
    return order, chunks


def _even_slices(count: int, floats: int, limit: int) -> list[slice]:
    """Slices of about equal length over `count` things of `floats` floats each, within `limit` or of one thing."""
    parts = -(-count // max(1, limit // floats))
    ends = [count * part // parts for part in range(parts + 1)]
    return [slice(*pair) for pair in pairwise(ends)]


def _as_one_tensor(images: ImageBatch) -> torch.Tensor:
    """Images (B, C, H, W), those of different sizes with zeros at the right and below."""
    if isinstance(images, torch.Tensor):
        return images
    height, width = (max(sides) for sides in zip(*image_sizes(images), strict=True))
    return torch.stack([F.pad(image, (0, width - image.shape[2], 0, height - image.shape[1])) for image in images])


def _check_images(images: ImageBatch, ids: torch.Tensor, recipe: ViewRecipe) -> tuple[int, torch.device]:
    """Number of channels and device of the images, after checks of them, their ids and the recipe."""
    if not isinstance(ids, torch.Tensor) or ids.dtype != torch.int64 or ids.dim() != 1:
        raise ValueError(f"ids must be a torch tensor int64 (B,), one id for each image; got {_kind(ids)}")
    if len(images) != len(ids):
        raise ValueError(f"every image needs one id, got {len(ids)} ids and {len(images)} images")
    if not len(images):
        raise ValueError("no images were given; a batch holds at least one")
    dims, first = (4 if isinstance(images, torch.Tensor) else 3), images[0]
    for one in [images] if isinstance(images, torch.Tensor) else images:
        right = isinstance(one, torch.Tensor) and one.dtype in (torch.uint8, torch.uint16)
        right = right and one.dim() == dims and 0 not in one.shape
        if not right or one.shape[-3] != first.shape[-3] or one.dtype != first.dtype:
            raise ValueError(
                "images must be torch tensors uint8 or uint16: (B, C, H, W), or a list of (C, h, w) with the same C "
                f"and dtype; got {_kind(one)}"
            )
    if first.device.type == "mps":
        raise ValueError("images are on an Apple GPU (mps), which has no float64: make the views of images on the CPU")
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


def _kind(found: object) -> str:
    """Description of an argument for an error: its dtype and shape, or its type."""
    if isinstance(found, torch.Tensor):
        return f"{found.dtype} {tuple(found.shape)}"
    return f"{type(found).__module__}.{type(found).__qualname__}".removeprefix("builtins.")
