"""Processors that this process may use, freed memory that it keeps, the precision of convolutions, and threads."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import AbstractContextManager
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import tiny
from ssole.data.arrays import ArraySource
from ssole.data.store import ImageStore
from ssole.evaluation.datasets import Subset
from ssole.evaluation.features import extract, extract_views
from ssole.evaluation.fine_tune import fine_tune
from ssole.evaluation.preprocessing import Preprocessing
from ssole.models.backbone import seeded_weights
from ssole.runtime import (
    decoding_threads,
    exact_convolutions,
    forget_peak_memory,
    keep_freed_memory,
    torch_state,
    usable_cpus,
)
from ssole.training.dry_run import step_seconds


@pytest.mark.parametrize(
    ("files", "expected"),
    [
        ({}, 8),
        ({"cpu.max": "max 100000\n"}, 8),
        ({"cpu.max": "2000000 100000\n"}, 8),
        ({"cpu.max": "250000 100000\n"}, 3),
        ({"cpu.max": "10000 100000\n"}, 1),
        ({"cpu.max": "nonsense"}, 8),
        ({"cpu/cpu.cfs_quota_us": "-1\n", "cpu/cpu.cfs_period_us": "100000\n"}, 8),
        ({"cpu/cpu.cfs_quota_us": "150000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 2),
        ({"cpu/cpu.cfs_quota_us": "50000\n", "cpu/cpu.cfs_period_us": "100000\n"}, 1),
    ],
)
def test_usable_cpus_are_those_bound_to_and_granted(
    monkeypatch: pytest.MonkeyPatch, files: dict[str, str], expected: int
) -> None:
    """A machine of 16 processors, 8 of them for this process, in containers of both versions of control groups."""
    groups = {f"/sys/fs/cgroup/{name}": text for name, text in files.items()}
    real_open, real_exists = open, os.path.exists

    def exists(path: Any) -> bool:
        return path in groups if str(path).startswith("/sys/fs/cgroup") else real_exists(path)

    def opened(path: Any, *arguments: Any, **options: Any) -> Any:
        return io.StringIO(groups[path]) if path in groups else real_open(path, *arguments, **options)

    import joblib  # noqa: F401 - before files are replaced

    monkeypatch.delenv("LOKY_MAX_CPU_COUNT", raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 16)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: set(range(8)), raising=False)
    monkeypatch.setattr(os.path, "exists", exists)
    monkeypatch.setattr("builtins.open", opened)
    assert usable_cpus() == expected


def test_decoding_threads_are_at_most_16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssole.runtime.usable_cpus", lambda: 64)
    assert decoding_threads() == 16


def test_windows_which_opens_no_library_without_a_name_measures_no_peak(monkeypatch: pytest.MonkeyPatch) -> None:
    def library(name: str | None) -> None:
        raise TypeError("argument of type 'NoneType' is not iterable")

    monkeypatch.setattr("ssole.runtime.ctypes.CDLL", library)
    assert not forget_peak_memory(torch.device("cpu"))


# Freed memory

PROGRAM = """
    import resource, torch
    from ssole.runtime import keep_freed_memory, reuse_freed_blocks
    {first}
    torch.set_num_threads(1)
    def taken(floats, times, blocks=1):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        for _ in range(times):
            [torch.ones(floats) for _ in range(blocks)]
        pages = 4 * floats * blocks / resource.getpagesize()
        return (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / pages
    print({what})
"""


def outcome(first: str, what: str) -> float:
    program = textwrap.dedent(PROGRAM.format(first=first, what=what))
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return float(done.stdout)


linux = pytest.mark.skipif(sys.platform != "linux", reason="glibc's malloc")


@pytest.mark.parametrize(("most", "kept"), [(1 << 40, 1 << 30), (32 << 20, 32 << 20), (0, None)])
def test_older_versions_of_glibc_keep_smaller_blocks(
    most: int, kept: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The old limit is as in its source: HEAP_MAX_SIZE / 2, 32 MB on machines of 64 bits."""
    thresholds: dict[int, int] = {}

    def mallopt(name: int, value: int) -> int:
        if name == -3 and value > most:
            return 0
        thresholds[name] = value
        return 1

    monkeypatch.setattr("ssole.runtime.sys.platform", "linux")
    monkeypatch.setattr("ssole.runtime.ctypes.CDLL", lambda _: SimpleNamespace(mallopt=mallopt))
    assert keep_freed_memory() == (kept is not None)
    assert thresholds == ({-3: kept, -1: 1 << 30} if kept else {})


@pytest.mark.slow
@linux
def test_large_blocks_that_are_kept_take_pages_once() -> None:
    """Of 36 MB, beyond what glibc ever keeps by itself; in units of the block's own pages."""
    assert outcome("pass", "taken(9_000_000, 5)") > 4.5
    assert outcome("assert keep_freed_memory()", "taken(9_000_000, 5)") < 2.5


@pytest.mark.slow
@linux
def test_several_smaller_blocks_that_are_reused_take_pages_once() -> None:
    """Of 3 MB each: by itself glibc gives what is free beyond twice the largest back, and maps it again."""
    assert outcome("pass", "taken(750_000, 8, blocks=6)") > 1.8  # 2.1 or 8, as the heap happens to lie
    assert outcome("reuse_freed_blocks()", "taken(750_000, 8, blocks=6)") < 1.6


def convolution_precision() -> Any:
    """Precision of float32 convolutions on a GPU, by torch's flags; "ieee", "none" or False for all of it."""
    cudnn: Any = torch.backends.cudnn
    return cudnn.conv.fp32_precision if hasattr(cudnn, "conv") else cudnn.allow_tf32


class Witness(torch.nn.Module):
    """Features of images that are their mean colours; `seen` has the precision of convolutions at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(3))
        self.seen: set[Any] = set()

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen.add(convolution_precision())
        return images.mean((2, 3)) * self.weight

    def __deepcopy__(self, memo: dict[int, Any]) -> Witness:
        return self  # fine-tuning trains a copy


def extracted(model: Witness, images: Subset, preprocessing: Preprocessing) -> None:
    extract(model, images, preprocessing, device="cpu", precision="float32", progress=False)


def views_extracted(model: Witness, images: Subset, preprocessing: Preprocessing) -> None:
    def two_views(batch: Any, ids: torch.Tensor) -> list[torch.Tensor]:
        return [preprocessing(batch)[:, None].expand(-1, 2, -1, -1, -1)]

    extract_views(model, images, images.positions, two_views, device=torch.device("cpu"))


def fine_tuned(model: Witness, images: Subset, preprocessing: Preprocessing) -> None:
    fine_tune(model, images, preprocessing, features=3, classes=2, epochs=1)


def trained(model: Witness, images: Subset, preprocessing: Preprocessing) -> None:
    class Loss(torch.nn.Module):
        def forward(self, z: torch.Tensor) -> torch.Tensor:
            model.seen.add(convolution_precision())
            return z.square().mean()

    step_seconds(tiny.config(), images.store, torch.device("cpu"), loss=Loss())


@pytest.mark.parametrize("use", [extracted, views_extracted, fine_tuned, trained])
@pytest.mark.parametrize("before", ["default", "tf32", "ieee", "tf32 in cuDNN", "tf32 in torch"])
def test_float32_convolutions_are_exact_wherever_a_network_is_used(use: Callable[..., None], before: str) -> None:
    cudnn: Any = torch.backends.cudnn
    if before != "default" and not hasattr(cudnn, "conv"):
        pytest.skip("flags by kind of operation came with torch 2.9")
    flags: Any = {"in cuDNN": cudnn, "in torch": torch.backends}.get(before[5:], getattr(cudnn, "conv", None))
    if before != "default":
        flags.fp32_precision = before[:4]
    try:
        kept, model = convolution_precision(), Witness()
        with ImageStore(ArraySource(tiny.images(8), np.arange(8) % 2)) as store:
            images = Subset(store=store, positions=torch.arange(8), labels=torch.arange(8) % 2)
            use(model, images, Preprocessing(image_size=8, mean=(0.5,) * 3, std=(0.2,) * 3))
        assert model.seen in ({"ieee"}, {"none"}, {False})
        assert convolution_precision() == kept
    finally:
        if before != "default":
            flags.fp32_precision = "tf32" if flags is cudnn.conv else "none"


def test_torchs_own_context_works_in_that_of_exact_convolutions() -> None:
    with exact_convolutions(), torch.backends.cudnn.flags(enabled=True, allow_tf32=False):
        assert not torch.backends.cudnn.allow_tf32
    assert torch.backends.cudnn.allow_tf32


@pytest.mark.parametrize("context", [lambda: torch_state(deterministic=False), lambda: seeded_weights(1)])
def test_a_second_thread_waits_for_torchs_state(context: Callable[[], AbstractContextManager[None]]) -> None:
    def enter() -> None:
        with context():
            pass

    with ThreadPoolExecutor(1) as pool:
        with torch_state(deterministic=True):
            enter()  # the same thread may
            other = pool.submit(enter)
            assert not wait([other], timeout=0.2).done
        other.result(timeout=60)
