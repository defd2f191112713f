"""What the pieces of a GPU suite share: rows on the disk at once, a limit of time, busy shares and FLOPs.

This file needs torch alone, so that the suite can say what else is missing.
"""

from __future__ import annotations

import importlib.util
import json
import os
import platform
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from datetime import datetime, timezone
from pathlib import Path
from types import FrameType
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from torch.utils.flop_counter import FlopCounterMode

Row = dict[str, Any]

NEEDED = {"pydantic": "pydantic", "yaml": "pyyaml"}
"""Modules that an image with torch, timm, torchvision and scikit-learn may lack, and their packages."""

PEAK_FLOPS = {"H200": 989e12, "H100": 989e12, "A100": 312e12}
"""Dense bfloat16 FLOP/s, by a part of the GPU's name; from the data sheets."""

PEAK_BYTES = {"H200": 4.8e12, "H100": 3.35e12, "A100": 2.0e12}
"""Bytes of memory a second, by a part of the GPU's name; from the data sheets (of the larger versions)."""


WAITS = ("Context Sync", "Stream Sync", "Event Sync", "Stream Wait Event")
"""Names of a profile's entries that are no work."""


class TimeUp(BaseException):
    """The limit of a piece has passed. No handler of errors on the way may take it for one."""


def wheels_command(modules: Iterable[str]) -> str:
    """Two commands that collect the wheels of missing modules elsewhere, and install them here."""
    packages = " ".join(NEEDED[module] for module in modules)
    version = ".".join(map(str, sys.version_info[:2]))
    return (
        f"python -m pip download --only-binary :all: --python-version {version} "
        f"--platform manylinux2014_{platform.machine()} --dest wheels {packages}\n"
        f"python -m pip install --no-index --find-links wheels {packages}"
    )


def require_modules() -> None:
    """SystemExit with the commands that bring what is missing."""
    if missing := [name for name in NEEDED if importlib.util.find_spec(name) is None]:
        raise SystemExit(
            f"{', '.join(missing)} cannot be imported. Install {' '.join(NEEDED[name] for name in missing)}; or, where "
            "there is no network, run the first line elsewhere and the second here:\n"
            f"{wheels_command(missing)}"
        )


class Record:
    """JSON file of a piece, written anew with each row."""

    def __init__(self, path: Path, about: dict[str, Any]) -> None:
        self.path, self._begun = path, time.perf_counter()
        date = datetime.now(timezone.utc).isoformat(timespec="seconds")
        self.values: dict[str, Any] = {"date": date, **about, "rows": []}
        path.parent.mkdir(parents=True, exist_ok=True)

    def add(self, row: Row) -> None:
        """Keep a row, and print it."""
        self.values["rows"].append(row)
        self.end()
        print("  " + "  ".join(f"{name} {_shown(value)}" for name, value in row.items()), flush=True)

    def end(self, **facts: Any) -> None:
        """Write the file, with further facts about the piece."""
        self.values |= {"seconds": round(time.perf_counter() - self._begun, 1), **facts}
        part = self.path.with_suffix(".part")
        part.write_text(json.dumps(self.values, indent=1) + "\n", encoding="utf-8")
        os.replace(part, self.path)


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)


def run_piece(name: str, rows: Callable[[], Iterator[Row]], record: Record, limit: float) -> bool:
    """Rows of a piece into its record, until it ends, fails or has taken `limit` seconds. Returns whether it ended."""
    print(f"{name} (at most {limit:.0f} s)", flush=True)
    try:
        with time_limit(limit):
            for row in rows():
                record.add(row)
    except TimeUp:
        record.end(stopped=f"after {limit:.0f} s")
    except Exception as error:  # noqa: BLE001 - whatever it is, the next piece shall run
        traceback.print_exc()
        record.end(failed=f"{type(error).__name__}: {error}")
    else:
        record.end(complete=True)
        return True
    return False


@contextmanager
def time_limit(seconds: float) -> Iterator[None]:
    """Context that raises TimeUp in the main thread when its time has passed."""

    def stop(number: int, frame: FrameType | None) -> None:
        raise TimeUp

    before = signal.signal(signal.SIGALRM, stop)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def synchronize(device: torch.device) -> None:
    """Wait until a device is idle."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_of(run: Callable[[], object], device: torch.device) -> float:
    """Seconds of a call, from an idle device to an idle device."""
    synchronize(device)
    begun = time.perf_counter()
    run()
    synchronize(device)
    return time.perf_counter() - begun


def flops_of(run: Callable[[], object]) -> int:
    """FLOPs of the convolutions and matrix products of a call, backward included."""
    with FlopCounterMode(display=False) as counter:
        run()
    return int(counter.get_total_flops())


def utilization(flops: float, seconds: float, device: torch.device) -> float | None:
    """Model FLOP utilization: share of the GPU's bfloat16 peak. None on a device whose peak is not known."""
    return _share(flops / seconds, PEAK_FLOPS, device)


def bandwidth_share(data: int, seconds: float, device: torch.device) -> float | None:
    """Share of the GPU's memory bandwidth that some bytes in some time make. None where the peak is not known."""
    return _share(data / seconds, PEAK_BYTES, device)


def _share(rate: float, peaks: dict[str, float], device: torch.device) -> float | None:
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = next((peak for part, peak in peaks.items() if part in name), None)
    return None if peak is None else rate / peak


def profiled(run: Callable[[], object], device: torch.device, *, operators: bool = True) -> tuple[Any, float]:
    """Profile of a call, and its seconds. Without operators it has the GPU's work alone, and takes less time itself."""
    on_gpu = device.type == "cuda"
    kinds = [ProfilerActivity.CPU] * (operators or not on_gpu) + [ProfilerActivity.CUDA] * on_gpu
    with profile(activities=kinds) as found:
        seconds = seconds_of(run, device)
    return found, seconds


def kernel_intervals(found: Any) -> list[tuple[float, float]]:
    """Begin and end, in microseconds, of all work of the GPU in a profile. Names of ranges and waits are no work."""
    return [
        (event.time_range.start, event.time_range.end)
        for event in found.events()
        if event.device_type == torch.autograd.DeviceType.CUDA
        and not event.is_user_annotation
        and event.name not in WAITS
    ]


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Length of the union of intervals."""
    total, reached = 0.0, float("-inf")
    for begin, end in sorted(intervals):
        total += max(0.0, end - max(begin, reached))
        reached = max(reached, end)
    return total


def busy_share(run: Callable[[], object], device: torch.device) -> float | None:
    """Share of a call's time in which the GPU works. None without a GPU, or where the driver lets nobody look."""
    if device.type != "cuda":
        return None
    found, seconds = profiled(run, device, operators=False)
    intervals = kernel_intervals(found)
    return covered(intervals) / (1e6 * seconds) if intervals else None
