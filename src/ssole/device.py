"""Where tensors live."""

from __future__ import annotations

import torch

from ssole.config import ConfigError


def resolve_device(device: torch.device | str) -> torch.device:
    """`auto`, `cpu`, `cuda` or `cuda:N` to a device.

    Raises:
        ConfigError: no such device here.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        place = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {str(device)!r}") from None
    if place.type not in ("cpu", "cuda"):
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {str(device)!r}")
    if place.type == "cuda" and (place.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device {str(device)!r} was asked for and torch sees {count} CUDA devices: use cpu, or auto")
    return place
