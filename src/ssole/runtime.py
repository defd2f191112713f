"""The machine a run uses: device, number format, peak memory, processors, determinism."""

from __future__ import annotations

import ctypes
import gc
import os
import platform
import sys
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from functools import lru_cache, partial
from pathlib import Path
from typing import Any, Literal

import torch

from ssole.config import ConfigError
from ssole.errors import without_secrets


def resolve_device(device: torch.device | str) -> torch.device:
    """Device of a setting: `auto` (CUDA if there is a GPU, else CPU), `cpu`, `cuda` or `cuda:N`.

    Raises:
        ConfigError: another name, or a GPU that this machine does not have.
    """
    if device == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        found = torch.device(device)
    except RuntimeError:
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {str(device)!r}") from None
    if found.type not in ("cpu", "cuda"):
        why = ": Apple's GPUs have no float64, which views and losses need, so use cpu" * (found.type == "mps")
        raise ConfigError(f"device must be auto, cpu, cuda or cuda:N, got {str(device)!r}{why}")
    if found.type == "cuda" and (found.index or 0) >= torch.cuda.device_count():
        count = torch.cuda.device_count()
        raise ConfigError(f"device {str(device)!r} was asked for and torch sees {count} CUDA devices: use cpu, or auto")
    return found


def copy_to(values: object, device: torch.device) -> torch.Tensor:
    """Numbers, or a tensor of them, on a device. The host does not wait for a GPU, which only pinned memory allows."""
    tensor = torch.as_tensor(values)
    if device.type == "cuda" and tensor.device.type == "cpu":
        tensor = tensor.pin_memory()
    return tensor.to(device, non_blocking=True)


Precision = Literal["auto", "float32", "bfloat16"]


def resolve_precision(precision: Precision, device: torch.device | str) -> torch.dtype | None:
    """Dtype to autocast to on a device, or None for plain float32.

    `auto` is bfloat16 where the hardware multiplies it natively (GPUs from Ampere on; x86 processors with AMX or
    AVX512-BF16). Elsewhere it is float32, because bfloat16 would be emulated and slower. `bfloat16` is always obeyed.

        dtype = resolve_precision("auto", device)
        with torch.autocast(device.type, dtype=dtype, enabled=dtype is not None): ...

    Raises:
        ValueError: any other precision.
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
    if hasattr(torch.cpu, "get_capabilities"):  # newer than the oldest torch that we support
        capabilities = torch.cpu.get_capabilities()
        return any(capabilities.get(flag, False) for flag in flags)
    cpuinfo = Path("/proc/cpuinfo")  # Linux only; without it, float32 is the safe answer
    return cpuinfo.exists() and not flags.isdisjoint(cpuinfo.read_text().split())


_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's mallopt
_LARGE = 1 << 30  # bytes; larger blocks still go back at once


def keep_freed_memory() -> bool:
    """Make the C library keep freed blocks of up to 1 GB for the next request. Returns whether it does; glibc only.

    By default glibc returns blocks of some megabytes to the system as soon as they are freed. Each training step on a
    CPU allocates the same blocks again, and waits for thousands of page faults while the system fills them with zeros:
    5 to 20 % of a step in `benchmarks/step.py`. In exchange the process keeps its peak memory between steps.
    """
    if sys.platform != "linux":
        return False
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError):  # another C library, such as musl
        return False
    # older versions of glibc refuse a threshold above 32 MB: larger blocks then still go back at once
    mapped = mallopt(_M_MMAP_THRESHOLD, _LARGE) or mallopt(_M_MMAP_THRESHOLD, 32 << 20)
    return bool(mapped) and bool(mallopt(_M_TRIM_THRESHOLD, _LARGE))


@lru_cache(maxsize=1)
def reuse_freed_blocks() -> None:
    """Make glibc reuse freed blocks of up to 32 MB from now on.

    glibc maps each block anew that is larger than the largest block freed so far, up to 32 MB. Freeing one untouched
    block of that size raises this limit, as any program that frees such a block does. So, unlike `keep_freed_memory`,
    it is safe in library calls. 512 blurred views of 32 pixels are made 1.3 times faster.
    """
    torch.empty(31 << 20, dtype=torch.uint8)


@contextmanager
def exact_convolutions() -> Iterator[None]:
    """Context of full float32 convolutions on a GPU, where cuDNN rounds to TF32 (10 bits) by default."""
    cudnn: Any = torch.backends.cudnn
    kinds = [kind for kind in (getattr(cudnn, "conv", None), getattr(cudnn, "rnn", None)) if kind is not None]
    before, old_flag = [kind.fp32_precision for kind in kinds], None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch 2.9 warns of the old flag, which torch's own code reads
        with suppress(RuntimeError):  # the caller has set the newer flags, by kind of operation, to different values
            old_flag, cudnn.allow_tf32 = cudnn.allow_tf32, False
    for kind in kinds:  # the old flag leaves them to flags for all of cuDNN, or all of torch
        kind.fp32_precision = "ieee"
    try:
        yield
    finally:
        if old_flag is not None:
            cudnn.allow_tf32 = old_flag
        for kind, precision in zip(kinds, before, strict=True):
            kind.fp32_precision = precision


@contextmanager
def exact_matrix_products(device: torch.device) -> Iterator[None]:
    """Context of full float32 matrix products on a device, whatever precision the caller has set."""
    matmul: Any = getattr(torch.backends.cuda if device.type == "cuda" else torch.backends.mkldnn, "matmul", None)
    is_new = hasattr(matmul, "fp32_precision")  # torch 2.9; once it was set, the old getter raises
    use = partial(setattr, matmul, "fp32_precision") if is_new else torch.set_float32_matmul_precision
    before = matmul.fp32_precision if is_new else torch.get_float32_matmul_precision()
    use("ieee" if is_new else "highest")
    try:
        yield
    finally:
        use(before)


@contextmanager
def untuned_convolutions() -> Iterator[None]:
    """Context in which cuDNN does not try all its algorithms for a new shape: that pays only for many batches of it."""
    before = torch.backends.cudnn.benchmark
    torch.backends.cudnn.benchmark = False
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = before


_TORCH_LOCK = threading.RLock()


@contextmanager
def one_thread() -> Iterator[None]:
    """Context of one thread at a time, for which other threads wait; also a decorator.

    torch's generators and its choice of algorithms belong to the whole process: two threads that set them would train
    from wrong weights. The caller's inference_mode, no_grad and autocast are off: training sets its own.
    """
    with _TORCH_LOCK, torch.inference_mode(False), torch.enable_grad(), ExitStack() as stack:
        for device in ("cpu", "cuda"):
            if torch.is_autocast_enabled(device):
                stack.enter_context(torch.autocast(device, enabled=False))
        yield


@contextmanager
def torch_state(*, deterministic: bool) -> Iterator[None]:
    """Context of training: full float32 convolutions, and deterministic algorithms if wanted; of one thread at a time.

    Otherwise cuDNN tries its algorithms for each new shape, of which a run has few, and keeps the quickest. Afterwards
    torch and its generators are as they were.
    """
    with one_thread():
        before = torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()
        fill = torch.utils.deterministic.fill_uninitialized_memory  # type: ignore[attr-defined]
        workspace, benchmark = os.environ.get("CUBLAS_WORKSPACE_CONFIG"), torch.backends.cudnn.benchmark
        try:
            torch.backends.cudnn.benchmark = not deterministic
            if deterministic:
                torch.use_deterministic_algorithms(True)
                # a debugging aid that writes every new tensor twice
                torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
                os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS requires it
            with exact_convolutions(), torch.random.fork_rng(devices=range(torch.cuda.device_count())):
                yield
        finally:
            torch.use_deterministic_algorithms(before[0], warn_only=before[1])
            torch.utils.deterministic.fill_uninitialized_memory = fill  # type: ignore[attr-defined]
            torch.backends.cudnn.benchmark = benchmark
            if workspace is None:
                os.environ.pop("CUBLAS_WORKSPACE_CONFIG", None)


def forget_peak_memory(device: torch.device) -> bool:
    """Start measuring peak memory anew; freed memory goes back to the system. Returns whether it can be measured."""
    gc.collect()
    if device.type == "cuda":
        torch.cuda.init()  # before it, torch has no peak to reset, and raises an error
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats(device)
        return True
    try:
        ctypes.CDLL(None).malloc_trim(0)
        Path("/proc/self/clear_refs").write_text("5")  # resets the peak that /proc/self/status gives
    except (AttributeError, OSError, TypeError):  # another C library or system; Windows opens no library None
        return False
    return True


def peak_memory(device: torch.device) -> int | None:
    """Peak memory in bytes since :func:`forget_peak_memory`: of the tensors on a GPU, of the process on a CPU.

    None where the system does not tell.
    """
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    status = Path("/proc/self/status")
    lines = status.read_text().splitlines() if status.exists() else []
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM:")), None)


def out_of_memory_reason(error: BaseException) -> str:
    """Sentence from an error about memory that ran out or threads that cannot start; "" for other errors."""
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return str(error)
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)) or "DefaultCPUAllocator" in str(error):
        return str(error).rpartition("DefaultCPUAllocator: ")[2].split(". ")[0] or "not enough memory"
    return ""


def synchronize(device: torch.device) -> None:
    """Wait until a GPU has finished its work, so that the clock can be read."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def usable_cpus() -> int:
    """Processors that this process may use: those it is bound to, or its container's share if that is less."""
    import joblib

    return int(joblib.cpu_count())


def decoding_threads() -> int:
    """The default number of threads that decode images: one for each processor, up to 16."""
    return min(16, usable_cpus())


def environment(*, command: bool = True) -> dict[str, Any]:
    """Versions and hardware of this process, for the record, and by default its command line."""
    import timm

    from ssole import __version__

    return {
        "ssole": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        **({"command": [without_secrets(word) for word in sys.argv]} if command else {}),
    }


def _processor() -> str:
    """Name of the processor, with the numbers that tell its generation, which names such as "AMD EPYC" leave open."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines() if cpuinfo.exists() else []
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    labels = {"cpu family": "family", "model": "model"}
    numbers = [f"{label} {facts[name]}" for name, label in labels.items() if name in facts]
    name = facts.get("model name") or platform.processor()
    return f"{name} ({', '.join([*numbers, torch.backends.cpu.get_cpu_capability()])})"
