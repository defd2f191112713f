"""Preprocessing of a frozen model: decoding size, centre crop and normalisation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ssole.config import PretrainConfig
from ssole.data.base import Source
from ssole.data.store import ImageStore
from ssole.models.load import LoadedBackbone


@dataclass(frozen=True, kw_only=True)
class Preprocessing:
    """Preprocessing of a frozen model: from decoded images to its input.

    Calling it centre-crops (:func:`center_crop`), scales to [0, 1] and normalises. kNN while training, evaluation and
    embedding all use it, so the same weights always give the same accuracy.

    Raises:
        ValueError: where mean and std are not one number for each channel, or for all, or a std or the size is not
            above 0.
    """

    image_size: int
    """S, the side of the model's square input in pixels."""
    mean: tuple[float, ...]
    """Mean of each channel, for images in [0, 1]."""
    std: tuple[float, ...]
    """Standard deviation of each channel, for images in [0, 1]."""
    channels: int | None = None
    """Channels of images kept at full depth, or None for red, green and blue."""

    def __post_init__(self) -> None:
        channels = self.channels or 3
        if {len(self.mean), len(self.std)} not in ({1}, {channels}) or min(self.std) <= 0:
            raise ValueError(
                f"mean is {tuple(self.mean)} and std {tuple(self.std)}; a number for each of {channels} channels is "
                "needed, or one for all, std above 0; as many in both"
            )
        if self.image_size < 1:
            raise ValueError(f"image_size is {self.image_size}; it is the side of the input in pixels, at least 1")

    @classmethod
    def from_config(cls, config: PretrainConfig) -> Preprocessing:
        """Preprocessing of the backbone of a run. The config must have mean and std, which a run measures first."""
        augment = config.augment
        assert augment.mean is not None
        assert augment.std is not None
        return cls(image_size=augment.image_size, mean=augment.mean, std=augment.std, channels=config.channels)

    @classmethod
    def from_model(
        cls,
        model: nn.Module,
        *,
        image_size: int | None = None,
        mean: Sequence[float] | None = None,
        std: Sequence[float] | None = None,
    ) -> Preprocessing:
        """Preprocessing of a model: the arguments, else attributes of these names, else timm's ``pretrained_cfg``.

        The number of channels is that of ``pretrained_cfg["input_size"]``, (C, S, S), or three.

        Raises:
            ValueError: a setting is found nowhere (the message names it), or the image size is not that of a square.
        """
        timm_config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
        timm_config = timm_config if isinstance(timm_config, Mapping) else vars(timm_config)
        input_size = timm_config.get("input_size") or (None, None, None)
        sides = {side for side in input_size[-2:] if side is not None}
        fallback = {"image_size": sorted(sides) or None, "mean": timm_config.get("mean"), "std": timm_config.get("std")}
        given = {"image_size": image_size, "mean": mean, "std": std}
        found: dict[str, Any] = {}
        for name, value in given.items():
            setting = value if value is not None else getattr(model, name, None)
            setting = setting.flatten().tolist() if isinstance(setting, Tensor) else setting
            setting = (setting,) if name != "image_size" and isinstance(setting, (int, float)) else setting
            found[name] = fallback[name] if setting is None else setting
        missing = [name for name, value in found.items() if value is None]
        if missing:
            raise ValueError(
                f"the preprocessing of {type(model).__name__} is unknown: pass {', '.join(missing)} "
                "(the side of its square input; the channel means and deviations that its images were normalised with)"
            )
        size = found["image_size"]
        sides = set(size) if isinstance(size, Sequence) else {size}
        if len(sides) != 1:
            raise ValueError(f"image_size is {size}; the side of a square is needed: pass image_size")
        if isinstance(model, LoadedBackbone):  # other modules may have an attribute of this name with another meaning
            channels = model.channels
        else:
            channels = None if input_size[0] == 3 else input_size[0]
            if max(found["mean"]) > 1:
                raise ValueError(
                    f"mean is {tuple(found['mean'])}, and images are in [0, 1]: divide mean and std by 255"
                )
        return cls(image_size=int(sides.pop()), mean=tuple(found["mean"]), std=tuple(found["std"]), channels=channels)

    @property
    def decode_size(self) -> int:
        """Shorter side, in pixels, to which larger images are reduced when they are decoded.

        Whole photographs would fill the memory. Twice the input size leaves enough detail for the exact resize.
        """
        return 2 * self.image_size

    def open_store(self, source: Source, **options: Any) -> ImageStore:
        """Store of a source's images, decoded for this model; ``options`` go to :class:`ImageStore`."""
        return ImageStore(source, shrink_to=self.decode_size, channels=self.channels, **options)

    def suits(self, store: ImageStore) -> bool:
        """Whether a store holds the same pixels as :meth:`open_store` would.

        It does when it decodes at the same size, or when all its images are so small that neither size reduces them.
        """
        if store.channels != self.channels:
            return False
        if store.shrink_to == self.decode_size:
            return True
        if store.images is None:
            return False
        side = min(store.images.shape[-2:])  # if it equals `store.shrink_to`, the images may have been reduced
        return side <= self.decode_size and (store.shrink_to is None or side < store.shrink_to)

    def __call__(self, images: Tensor | Sequence[Tensor], *, device: torch.device | str | None = None) -> Tensor:
        """Model input (B, C, S, S) float32 of uint8 or uint16 images (B, C, H, W), or of a list of B tensors (C, h, w).

        It is computed on ``device``, by default that of the images.
        """
        crops = center_crop(images, self.image_size, device=device)
        mean_C11, std_C11 = (torch.tensor(list(v), device=crops.device).view(-1, 1, 1) for v in (self.mean, self.std))
        return torch.addcmul(-mean_C11 / std_C11, crops, 1 / std_C11)


def center_crop(images: Tensor | Sequence[Tensor], size: int, *, device: torch.device | str | None = None) -> Tensor:
    """Centre crops (B, C, size, size), float32 in [0, 1], of uint8 or uint16 images.

    The shorter side is resized to ``size`` (bilinear, antialiased) and the middle square is kept. Images already of
    that size pass untouched. Arguments as for calling :class:`Preprocessing`.
    """
    if not isinstance(images, Tensor):
        return torch.cat([center_crop(image[None], size, device=device) for image in images])
    scaled = images.to(device, non_blocking=True).float() / torch.iinfo(images.dtype).max
    height, width = scaled.shape[-2:]
    if min(height, width) != size:
        short = min(height, width)
        shape = [max(size, round(side * size / short)) for side in (height, width)]
        scaled = F.interpolate(scaled, shape, mode="bilinear", antialias=True, align_corners=False)
        height, width = shape
    top, left = (height - size) // 2, (width - size) // 2
    return scaled[..., top : top + size, left : left + size]
