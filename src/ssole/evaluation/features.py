"""Frozen features: images through a backbone in evaluation mode, once, in order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Protocol, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ssole.evaluation.checks import check_finite
from ssole.files import write_atomically
from ssole.progress import progress_bar
from ssole.runtime import Precision, resolve_precision

if TYPE_CHECKING:
    from ssole.data.base import Source

RAW_PIXEL_SIZE = 32
"""Side to which images are shrunk before their pixels serve as features: larger ones only make the baseline worse."""


class Images(Protocol):
    """What is read of :class:`ssole.data.store.ImageStore`: uint8 images by position, stacked where sizes agree."""

    def __len__(self) -> int: ...

    def get(self, indices: Tensor) -> Tensor | list[Tensor]: ...


def extract(
    model: nn.Module,
    images: Images | Source,
    *,
    image_size: int,
    mean: Sequence[float],
    std: Sequence[float],
    batch_size: int = 256,
    device: torch.device | str | None = None,
    precision: Precision = "auto",
    progress: bool = True,
) -> Tensor:
    """Features of every image, in order: (N, F) float32 on the CPU.

    Each image is centre-cropped (:func:`center_crop`), scaled to [0, 1], normalised with ``mean`` and ``std`` and given
    to the model in evaluation mode, without gradients. The training mode of every submodule is as before afterwards,
    and the model stays on its device.

    Args:
        model: maps (B, C, S, S) float32 to (B, F), or to (B, F, 1, 1).
        images: an ImageStore, or a Source to make one of.
        image_size: S, the side of the square given to the model.
        mean, std: of each of the C channels (three for red, green and blue), for images in [0, 1].
        batch_size: images in a forward pass. In evaluation mode it bears on speed and memory only.
        device: where to run; by default where the model's parameters are.
        precision: of the model's convolutions and products; see :func:`ssole.runtime.resolve_precision`.
        progress: show a bar when it takes more than two seconds.

    Raises:
        ValueError: when there are no images, or the features are not (B, F), or not finite.
    """
    store = as_store(images)
    place = torch.device(device) if device is not None else _home(model)
    dtype = resolve_precision(precision, place)
    scale, shift = _affine(mean, std, place)
    features: Tensor | None = None
    with frozen(model, place), torch.autocast(place.type, dtype=dtype, enabled=dtype is not None):
        for start, batch in _batches(store, batch_size, progress=progress):
            crops = center_crop(batch, image_size, device=place)
            inputs = torch.addcmul(shift, crops, scale)
            rows = _as_rows(model(inputs.contiguous(memory_format=torch.channels_last)))
            if features is None:
                with torch.inference_mode(False):  # a plain tensor, that autograd may use later
                    features = torch.empty(len(store), rows.shape[1])
            features[start : start + len(rows)] = rows
    assert features is not None  # as_store refuses an empty one
    check_finite(features, "features")
    return features


def raw_pixels(
    images: Images | Source,
    image_size: int = RAW_PIXEL_SIZE,
    *,
    mean: Sequence[float] = (0.5, 0.5, 0.5),
    std: Sequence[float] = (0.5, 0.5, 0.5),
    progress: bool = False,
) -> Tensor:
    """The baseline that learns nothing: (N, C * S * S) float32, S = min(image_size, 32).

    What a model would be given, shrunk to 32 pixels if larger: cropped, scaled to [0, 1], less ``mean`` and divided by
    ``std``, and flattened. Nothing is done to an image by itself; taking out each one's own brightness and contrast is
    feature engineering, and can make a stronger baseline (61 % instead of 57 % by kNN, k = 20, on digits-m).
    """
    store = as_store(images)
    size = min(image_size, RAW_PIXEL_SIZE)
    scale, shift = _affine(mean, std, torch.device("cpu"))
    parts = _batches(store, 1024, progress=progress)
    return torch.cat([torch.addcmul(shift, center_crop(batch, size), scale).flatten(1) for _, batch in parts])


def center_crop(batch: Tensor | Sequence[Tensor], size: int, *, device: torch.device | str | None = None) -> Tensor:
    """uint8 or uint16 (B, C, H, W), or B of any (C, h, w), to float32 (B, C, size, size) in [0, 1].

    The short side is resized to ``size`` (bilinear, antialiased) and the middle square is kept; images already of that
    size pass untouched.
    """
    if not isinstance(batch, Tensor):
        return torch.cat([center_crop(image[None], size, device=device) for image in batch])
    images = batch.to(device, non_blocking=True).float() / torch.iinfo(batch.dtype).max
    height, width = images.shape[-2:]
    if min(height, width) != size:
        short = min(height, width)
        shape = [max(size, round(side * size / short)) for side in (height, width)]
        images = F.interpolate(images, shape, mode="bilinear", antialias=True, align_corners=False)
        height, width = shape
    top, left = (height - size) // 2, (width - size) // 2
    return images[..., top : top + size, left : left + size]


@contextmanager
def frozen(model: nn.Module, device: torch.device) -> Iterator[None]:
    """The model on ``device``, in evaluation mode and without gradients; on leaving, all is as it was before."""
    home, modes = _home(model), {module: module.training for module in model.modules()}
    try:
        model.eval().to(device)
        with torch.inference_mode():
            yield
    finally:
        model.to(home)
        for module, training in modes.items():
            module.training = training


def as_store(images: Images | Source) -> Images:
    """``images`` if it can be read by position already, or an ImageStore of the Source that it is.

    Raises:
        ValueError: when it is empty.
    """
    if not len(images):
        raise ValueError(f"there are no images in {images!r}: nothing to make features of")
    if hasattr(images, "get"):
        return cast("Images", images)
    from ssole.data.store import ImageStore

    return cast("Images", ImageStore(images))


def _batches(store: Images, size: int, *, progress: bool) -> Iterator[tuple[int, Tensor | list[Tensor]]]:
    """(position of the first image, images) by batches; the next is read while the caller works on the last."""
    parts = torch.split(torch.arange(len(store)), size)
    with ThreadPoolExecutor(1) as reader, progress_bar("features", len(store), enabled=progress) as advance:
        ahead = reader.submit(store.get, parts[0])
        for number, part in enumerate(parts):
            batch = ahead.result()
            if number + 1 < len(parts):
                ahead = reader.submit(store.get, parts[number + 1])
            yield int(part[0]), batch
            advance(len(part))


def _affine(mean: Sequence[float], std: Sequence[float], device: torch.device) -> tuple[Tensor, Tensor]:
    """(scale, shift), each (C, 1, 1), with x * scale + shift = (x - mean) / std."""
    if not len(mean) == len(std) >= 1 or min(std) <= 0:
        raise ValueError(
            f"mean is {tuple(mean)} and std {tuple(std)}; a number for each channel is needed (three for red, green "
            "and blue), std above 0"
        )
    mean_C11, std_C11 = (torch.tensor(list(values), device=device).view(-1, 1, 1) for values in (mean, std))
    return 1 / std_C11, -mean_C11 / std_C11


def _as_rows(output: object) -> Tensor:
    """The model's output as float32 (B, F)."""
    if isinstance(output, Tensor) and output.ndim == 4 and output.shape[2:] == (1, 1):
        output = output.flatten(1)
    if not isinstance(output, Tensor) or output.ndim != 2:
        got = f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else f"a {type(output).__name__}"
        raise ValueError(f"the model gave {got} for a batch; features (B, F) are needed: build it with num_classes=0")
    return output.float()


def _home(model: nn.Module) -> torch.device:
    """The device of the model's parameters (the CPU for a model without any)."""
    return next((parameter.device for parameter in model.parameters()), torch.device("cpu"))


@dataclass(frozen=True, kw_only=True)
class Embeddings:
    """Frozen features of images, row by row with their ids."""

    array: NDArray[np.float32]
    """(N, F)."""
    ids: list[str]
    """N names, stable between runs: the path of each image below the data's root, or ``file:row``."""
    labels: NDArray[np.int64] | None = None
    """(N,), -1 where unknown; or None."""
    classes: list[str] | None = None
    """Names of the labels 0, 1, ..., where known."""

    def __post_init__(self) -> None:
        if self.array.ndim != 2 or len(self.ids) != len(self.array):
            raise ValueError(f"an array of shape {self.array.shape} with {len(self.ids)} ids; (N, F) and N are needed")
        if self.labels is not None and self.labels.shape != (len(self.array),):
            raise ValueError(f"labels have shape {self.labels.shape}; ({len(self.array)},) is needed")

    def __len__(self) -> int:
        return len(self.array)

    def save(self, path: str | PathLike[str]) -> Path:
        """Write to ``.npz`` (keys array, ids, labels, classes) or ``.parquet`` (columns id, embedding, label, class).

        The file appears whole or not at all. Neither form needs pickle to be read.

        Raises:
            ValueError: for another ending.
        """
        path = Path(path)
        writers = {".npz": self._write_npz, ".parquet": self._write_parquet}
        if path.suffix not in writers:
            raise ValueError(f"cannot write embeddings to {path.name!r}: end the name in {' or '.join(writers)}")
        write_atomically(path, writers[path.suffix])
        return path

    def _write_npz(self, path: Path) -> None:
        columns: dict[str, NDArray[np.generic]] = {"array": self.array, "ids": np.array(self.ids, dtype=np.str_)}
        if self.labels is not None:
            columns["labels"] = self.labels
        if self.classes is not None:
            columns["classes"] = np.array(self.classes, dtype=np.str_)
        with path.open("wb") as file:  # given a name, numpy would append .npz to it
            np.savez(file, allow_pickle=False, **columns)

    def _write_parquet(self, path: Path) -> None:
        import pyarrow as pa
        from pyarrow import parquet

        flat = pa.array(np.ascontiguousarray(self.array).ravel())
        columns = {"id": pa.array(self.ids), "embedding": pa.FixedSizeListArray.from_arrays(flat, self.array.shape[1])}
        if self.labels is not None:
            columns["label"] = pa.array(self.labels)
            if self.classes is not None:
                names = np.array([*self.classes, None], dtype=object)  # -1, an unknown label, has no name
                columns["class"] = pa.array(names[self.labels], type=pa.string())
        parquet.write_table(pa.table(columns), path)
