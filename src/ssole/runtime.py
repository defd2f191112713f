"""The machine a run uses: device, number format, memory, processors, determinism."""

from __future__ import annotations

import ctypes
import math
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Literal

import torch

from ssole.config import ConfigError
from ssole.errors import DataError
from ssole.rng import Use, bits


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


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGE = 1 << 30  # bytes; larger blocks still go back at once


def keep_freed_memory() -> bool:
    """Have the C library keep freed blocks of up to 1 GB for the next request. Whether it does: glibc only.

    By default glibc gives blocks of some megabytes back to the system as soon as they are freed. A training step on the
    CPU allocates the same ones as the step before, and then waits for thousands of page faults while the system fills
    them with zeros: 5 to 20 % of a step in `benchmarks/step.py`. The process keeps its peak memory in exchange, which a
    training loop needs again anyway.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return False
    return bool(mallopt(_M_MMAP_THRESHOLD, _LARGE)) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))


@lru_cache(maxsize=1)
def reuse_freed_blocks() -> None:
    """Have glibc reuse freed blocks of up to 32 MB from now on; what it would come to by itself after freeing one.

    It maps large blocks anew each time they are asked for, "large" being what the largest block freed so far was, up to
    32 MB, and gives back what is free beyond twice that. Freeing one of that size, which nobody ever touched, sets the
    limit. Nothing changes that a program would not meet anyway, so this is for library calls: 512 blurred views of 32
    pixels are made 1.3 times faster.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


@contextmanager
def torch_state(*, deterministic: bool) -> Iterator[None]:
    """Deterministic algorithms if wanted; on leaving, torch and its generators are as they were."""
    before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
    workspace = os.environ.get("CUBLAS_WORKSPACE_CONFIG")
    try:
        if deterministic:
            torch.use_deterministic_algorithms(True)
            # a debugging aid, which would write every new tensor twice
            torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
            os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # which cuBLAS then insists on
        with torch.random.fork_rng(devices=range(torch.cuda.device_count())):
            yield
    finally:
        torch.use_deterministic_algorithms(before[0], warn_only=before[1])
        torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
        if workspace is None:
            os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def seed_layers(seed: int, step: int) -> None:
    """Make dropout and its like in a backbone functions of (seed, step): they draw from torch's own generator."""
    number = bits(seed, step, torch.zeros(1, dtype=torch.int64), torch.zeros(1, dtype=torch.int64), Use.LAYERS, 1)
    torch.manual_seed(int(number))


def total_memory() -> int:
    """Bytes of memory that this process may use: the machine's, or its container's if that is less."""
    amounts = []
    if hasattr(os, "sysconf") and "SC_PHYS_PAGES" in os.sysconf_names:
        amounts.append(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    for name in ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory/memory.limit_in_bytes"):
        try:
            text = Path(name).read_text().strip()
        except OSError:
            continue  # no such control group here
        if text.isdigit():
            amounts.append(int(text))
    return min(amounts, default=8 << 30)  # where the system does not say, as on Windows: a common size


def check_memory(size: int, what: str, advice: str) -> None:
    """Better a `DataError` now than a process that the system kills while it loads: for over 80 % of the memory.

    Args:
        size: Bytes that are to be loaded.
        what: What they are, to begin the message with.
        advice: What to do instead, in whole sentences.
    """
    if size > (limit := int(0.8 * total_memory())):
        raise DataError(
            f"{what}: {size / 2**30:.1f} GiB, more than 80 % of the memory ({limit / 2**30:.1f} GiB). {advice}"
        )


def usable_cpus() -> int:
    """Processors that this process may use: those it is bound to, or its container's share if that is less."""
    bound = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, math.ceil(min(bound, _cpu_quota(Path("/sys/fs/cgroup")))))


def decoding_threads() -> int:
    """How many threads decode images unless told otherwise: one for each processor, up to 16."""
    return min(16, usable_cpus())


def _cpu_quota(groups: Path) -> float:
    """Processors' worth of time that the control group grants, in its second or first version; infinity without one."""
    for names in (("cpu.max",), ("cpu/cpu.cfs_quota_us", "cpu/cpu.cfs_period_us")):
        try:
            quota, period = " ".join((groups / name).read_text() for name in names).split()
        except (OSError, ValueError):
            continue  # no such control group here
        if quota.isdigit() and int(period):  # "max" and -1 stand for no limit
            return int(quota) / int(period)
    return math.inf
