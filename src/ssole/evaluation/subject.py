"""Who is judged: a frozen model, and how to feed it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from os import PathLike
from typing import Any, cast

import torch
from torch import Tensor, nn

from ssole.evaluation.features import Images, extract
from ssole.runtime import Precision

ModelOrRun = nn.Module | str | PathLike[str] | Any
"""A module giving features (B, F); or a run folder, its ``backbone.safetensors``, or the Run that pretraining gave."""


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A frozen model and how to feed it."""

    model: nn.Module
    image_size: int
    """Side of the square given to the model, in pixels."""
    mean: tuple[float, ...]
    std: tuple[float, ...]
    """Of each channel, for images in [0, 1]."""
    device: torch.device
    precision: Precision = "auto"
    progress: bool = True

    def features(self, images: Images) -> Tensor:
        """(N, F) float32 on the CPU; see :func:`ssole.evaluation.features.extract`."""
        return extract(
            self.model,
            images,
            image_size=self.image_size,
            mean=self.mean,
            std=self.std,
            device=self.device,
            precision=self.precision,
            progress=self.progress,
        )


def load_model(model_or_run: ModelOrRun) -> nn.Module:
    """A module as it is; the trained backbone of a run."""
    if isinstance(model_or_run, nn.Module):
        return model_or_run
    from ssole.models.load import load

    return load(model_or_run)


def load_untrained(run: ModelOrRun) -> nn.Module:
    """The backbone of a run at its initial weights."""
    from ssole.models.load import untrained

    return untrained(run)


def feeding(
    model: nn.Module, image_size: int | None, mean: Sequence[float] | None, std: Sequence[float] | None
) -> dict[str, Any]:
    """``image_size``, ``mean`` and ``std`` of a model: what is given, else its attributes, else timm's configuration.

    Raises:
        ValueError: naming those that are nowhere to be found.
    """
    timm_config = getattr(model, "pretrained_cfg", None) or getattr(model, "default_cfg", None) or {}
    timm_config = timm_config if isinstance(timm_config, Mapping) else vars(timm_config)
    input_size = timm_config.get("input_size") or (None, None, None)
    given = {"image_size": image_size, "mean": mean, "std": std}
    fallback = {"image_size": input_size[-1], "mean": timm_config.get("mean"), "std": timm_config.get("std")}
    found = {
        name: value if value is not None else getattr(model, name, None) or fallback[name]
        for name, value in given.items()
    }
    missing = [name for name, value in found.items() if value is None]
    if missing:
        raise ValueError(
            f"{type(model).__name__} does not say how to feed it: pass {', '.join(missing)} "
            "(the side of its square input; the channel means and deviations that its images were normalised with)"
        )
    size = int(cast("int", found["image_size"]))
    return {"image_size": size, "mean": tuple(found["mean"]), "std": tuple(found["std"])}  # type: ignore[arg-type]
