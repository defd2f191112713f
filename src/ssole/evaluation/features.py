"""Frozen features: the output of a model in evaluation mode for every image, in order."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from typing import Any, Protocol

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssole import distributed
from ssole.data.store import ImageStore
from ssole.evaluation.checks import check_features
from ssole.evaluation.preprocessing import Preprocessing
from ssole.progress import progress_bar
from ssole.runtime import Precision, exact_convolutions, resolve_device, resolve_precision

RAW_PIXEL_SIZE = 32
"""Side of the images, in pixels, whose pixels serve as features: larger images only make the baseline worse."""

_FORMATS = (torch.float64, torch.float16, torch.bfloat16)  # of weights, besides float32, that images are converted to


Views = Callable[[Tensor | list[Tensor], Tensor], Sequence[Tensor]]
"""Function from decoded images and their indices to views: for each crop group (B, V, C, S, S) float32 for the model.
``functools.partial(ssole.make_views, recipe=..., seed=0, epoch=0)`` is one."""


class DecodedImages(Protocol):
    """Decoded images by position, such as an ImageStore or a Subset of one."""

    def __len__(self) -> int: ...

    def get(self, indices: Tensor) -> Tensor | list[Tensor]:
        """uint8 or uint16 images (B, C, H, W), or a list of B tensors (C, h, w) where sizes differ."""
        ...


def extract(
    model: nn.Module,
    images: DecodedImages,
    preprocessing: Preprocessing,
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    progress: bool = True,
) -> Tensor:
    """Features of every image, in order: (N, F) float32 on the CPU. The model is :func:`frozen` meanwhile.

    Args:
        model: module from (B, C, S, S) to (B, F) or (B, F, 1, 1); its input has the dtype of its weights.
        images: decoded images, such as :meth:`Preprocessing.open_store` gives.
        preprocessing: preprocessing of the model.
        batch_size: images in a forward pass; it changes speed and memory only.
        device: device to run on; by default that of the model's parameters.
        precision: number format of the model's convolutions and products; see :func:`ssole.runtime.resolve_precision`.
        progress: show a bar when it takes more than two seconds.

    Raises:
        ValueError: there are no images, or the features are not (B, F) or not finite.
    """
    if not len(images):
        raise ValueError(f"there are no images in {images!r}, so there are no features")
    features = torch.empty(0)

    def keep(start: int, rows: Tensor) -> None:
        nonlocal features
        if not start:
            with torch.inference_mode(False):  # a plain tensor, which autograd may use later
                features = torch.empty(len(images), rows.shape[1])
        features[start : start + len(rows)] = rows

    for_each_batch(
        model, images, preprocessing, keep, batch_size=batch_size, device=device, precision=precision, progress=progress
    )
    check_features(features, "features")
    return features


def for_each_batch(
    model: nn.Module,
    images: DecodedImages,
    preprocessing: Preprocessing,
    use: Callable[[int, Tensor], None],
    *,
    batch_size: int = 256,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    progress: bool = True,
) -> None:
    """Call ``use`` with the features (B, F) float32 of each batch, in order, and the position of its first image.

    Arguments as for :func:`extract`. ``use`` runs in inference mode: what it keeps, it should copy. (A generator would
    leave its caller in that mode.) Processes that work together share the batches, and each calls ``use`` with all.
    """
    device = torch.device(device) if device is not None else _device_of(model)
    dtype, batches = resolve_precision(precision, device), torch.split(torch.arange(len(images)), batch_size)
    with frozen(model, device), torch.autocast(device.type, dtype=dtype, enabled=dtype is not None):
        for number, pixels in enumerate(_decoded(images, own_batches(batches), progress=progress)):
            inputs = preprocessing(pixels, device=device)
            inputs = _of_its_format(inputs, model).contiguous(memory_format=torch.channels_last)
            own = _as_rows(model(inputs), len(inputs))
            for start, rows in batches_of_all(number, own, batches, images):
                use(start, rows)


def extract_views(
    model: nn.Module, images: DecodedImages, ids: Tensor, views: Views, *, device: torch.device
) -> Tensor:
    """Features of the views of every image, those of the first crop group: (N, V, F) float32 on the CPU.

    The model is as for :func:`extract`; ``ids`` (N,) int64 are the indices of the images in their data set. A single
    view is a ValueError.
    """
    batches = []
    with frozen(model, device):
        for part in torch.split(torch.arange(len(images)), 128):
            views_BVCSS = views(images.get(part), ids[part])[0]
            if views_BVCSS.shape[1] < 2:
                raise ValueError("the first crop group makes one view of an image; comparing views needs two or more")
            inputs = views_BVCSS.flatten(0, 1).to(device)
            rows = _as_rows(model(_of_its_format(inputs, model)), len(inputs)).cpu()
            batches.append(rows.view(*views_BVCSS.shape[:2], -1))
    return torch.cat(batches)


def adapted_views(views: Views, source: Preprocessing, target: Preprocessing) -> Views:
    """Views made for one model, as another model's input: resized (bilinear, antialiased) and normalised for it.

    Models of other preprocessing are thus compared on the same views. Equal preprocessing: the views as they are.
    """
    if source == target:
        return views
    size = [target.image_size, target.image_size]

    def adapted(images: Tensor | list[Tensor], ids: Tensor) -> list[Tensor]:
        made = []
        for views_BVCSS in views(images, ids):
            mean, std, new_mean, new_std = (
                views_BVCSS.new_tensor(list(values)).view(-1, 1, 1)
                for values in (source.mean, source.std, target.mean, target.std)
            )
            plain = (views_BVCSS * std + mean).flatten(0, 1)
            plain = F.interpolate(plain, size, mode="bilinear", antialias=True, align_corners=False)
            made.append(((plain - new_mean) / new_std).unflatten(0, views_BVCSS.shape[:2]))
        return made

    return adapted


def raw_pixels(images: DecodedImages, preprocessing: Preprocessing, *, progress: bool = False) -> Tensor:
    """Raw pixels as features, the baseline without learning: (N, C * S * S) float32, S = min(image_size, 32).

    They are the model's input, shrunk to 32 pixels if larger, and flattened. No image is normalised by its own mean and
    deviation. That would be feature engineering, and can make a stronger baseline (61 % instead of 57 % by kNN, k = 20,
    on digits-m).
    """
    shrunk = dataclasses.replace(preprocessing, image_size=min(preprocessing.image_size, RAW_PIXEL_SIZE))
    return extract(nn.Flatten(), images, shrunk, device="cpu", precision="float32", progress=progress)


@contextmanager
def frozen(model: nn.Module, device: torch.device) -> Iterator[None]:
    """Context with the model on ``device``, in evaluation mode, without gradients; afterwards it is as before.

    Convolutions of float32 are exact.
    """
    home, modes = _device_of(model), {module: module.training for module in model.modules()}
    try:
        model.eval().to(device)
        with torch.inference_mode(), exact_convolutions():
            yield
    finally:
        model.to(home)
        for module, training in modes.items():
            module.training = training


def _decoded(images: DecodedImages, batches: Sequence[Tensor], *, progress: bool) -> Iterator[Tensor | list[Tensor]]:
    """Decoded images of each batch of positions; the next batch is read while one is in use."""
    total, reader = sum(map(len, batches)), ThreadPoolExecutor(1)
    try:
        with progress_bar("features", total, enabled=progress) as advance:
            ahead = reader.submit(images.get, batches[0])
            for number, batch in enumerate(batches):
                pixels = ahead.result()
                if number + 1 < len(batches):
                    ahead = reader.submit(images.get, batches[number + 1])
                yield pixels
                advance(len(batch))
    finally:
        reader.shutdown(wait=False)  # a signal must not have to wait for a disk that is silent


def _of_its_format(inputs: Tensor, model: nn.Module) -> Tensor:
    """Input in the number format of the model's weights, unless autocast converts both; it leaves float64 alone."""
    own = next((weights.dtype for weights in model.parameters() if weights.is_floating_point()), inputs.dtype)
    converted = own is not torch.float64 and torch.is_autocast_enabled(inputs.device.type)
    return inputs if converted or own not in _FORMATS else inputs.to(own)


def _as_rows(output: object, count: int) -> Tensor:
    """The model's output for ``count`` images as float32 (B, F)."""
    if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:] == (1, 1):
        output = output.flatten(1)
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != count:
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        what = f"for a batch of {count}; features (B, F), a row for each image, are needed: build it with num_classes=0"
        raise ValueError(f"the model gave {got} {what}")
    return output.float()


def _device_of(model: nn.Module) -> torch.device:
    """Device of the model's parameters; the CPU for a model without any."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


def evaluation_device(device: torch.device | str) -> torch.device:
    """Device of a setting; if processes share the work, that of this process."""
    found = resolve_device(device)
    return distributed.own_device(found) if distributed.shares_work() else found


def own_batches(batches: Sequence[Tensor]) -> list[Tensor]:
    """Batches that this process computes, one in each round. If the last round has none for it, a single image."""
    if not distributed.shares_work():
        return list(batches)
    world, rank = distributed.world_size(), distributed.rank()
    own = list(batches[rank::world])
    return own if rank <= (len(batches) - 1) % world else [*own, batches[-1][:1]]


def batches_of_all(number: int, rows: Tensor, batches: Sequence[Tensor], images: Any) -> Iterator[tuple[int, Tensor]]:
    """Position of the first image, and the features, of each batch of a round, in order.

    ``rows`` are the features (B, F) of this process's own batch, and ``batches`` the positions of the images of all
    batches. ``images``, a store or a subset of one, is told which images other processes could not read.
    """
    if not distributed.shares_work():
        yield int(batches[number][0]), rows
        return
    distributed.stopping_point()
    store = getattr(images, "store", images)
    if isinstance(store, ImageStore) and distributed.maximum(len(store.unreadable)):
        store.take_unreadable(one for found in distributed.collect(store.unreadable) for one in found)
    world = distributed.world_size()
    if number * world + distributed.rank() >= len(batches):
        rows = rows[:0]
    gathered = distributed.gather(rows.contiguous(), equal=False)
    for batch in batches[number * world : (number + 1) * world]:
        yield int(batch[0]), gathered[: len(batch)]
        gathered = gathered[len(batch) :]
