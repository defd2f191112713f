"""Which number format the convolutions and matrix products of a network run in."""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

Precision = Literal["auto", "float32", "bfloat16"]


def resolve_precision(precision: Precision, device: torch.device | str) -> torch.dtype | None:
    """Give the dtype to autocast to on ``device``, or None for plain float32.

    ``"auto"`` takes bfloat16 where the hardware multiplies it natively (GPUs from Ampere on; x86 processors with
    AMX or AVX512-BF16) and float32 elsewhere, where bfloat16 would be emulated and slower. ``"bfloat16"`` is always
    obeyed.

        dtype = resolve_precision("auto", device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None): ...

    Raises:
        ValueError: for any other ``precision``.
    """
    if precision == "float32":
        return None
    if precision == "bfloat16":
        return torch.bfloat16
    if precision != "auto":
        raise ValueError(f"precision is {precision!r}; choose 'auto', 'float32' or 'bfloat16'")
    kind = torch.device(device).type
    if kind == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else None
    return torch.bfloat16 if kind == "cpu" and _cpu_multiplies_bfloat16() else None


@lru_cache(maxsize=1)
def _cpu_multiplies_bfloat16() -> bool:
    flags = {"amx_bf16", "avx512_bf16"}
    if hasattr(torch.cpu, "get_capabilities"):  # younger than the oldest torch we support
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(flag, False) for flag in flags)
    cpuinfo = Path("/proc/cpuinfo")  # Linux only; without it, float32 is the safe answer
    return cpuinfo.exists() and not flags.isdisjoint(cpuinfo.read_text().split())
