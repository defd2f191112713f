"""Features of an image to look for."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ssole.data.decode import decode
from ssole.data.objects import ObjectSource
from ssole.evaluation.features import extract
from ssole.evaluation.preprocessing import Preprocessing
from ssole.runtime import resolve_device


def open_image(image: Any, *, shrink_to: int | None = None, channels: int | None = None) -> Tensor:
    """Decoded image (C, h, w) of a path, a Pillow image or an array (H, W) or (H, W, C), uint8 or uint16.

    One that cannot be read is a DataError, whose message names it.
    """
    source = ObjectSource([image], name="query")
    return decode(source.read(0), where=source.id(0), shrink_to=shrink_to, channels=channels)


def image_features(
    image: Any, model: nn.Module, preprocessing: Preprocessing, *, device: torch.device | str = "auto"
) -> Tensor:
    """Features (1, F) of an image, prepared as the images of an index are. Raises as :func:`open_image`."""
    decoded = open_image(image, shrink_to=preprocessing.decode_size, channels=preprocessing.channels)
    store = preprocessing.open_store(ObjectSource([decoded.movedim(0, -1).numpy()], name="query"))
    return extract(model, store, preprocessing, device=resolve_device(device), progress=False)
