"""A progress bar that stays out of the way of short work."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence

from torch import Tensor

PATIENCE = 2.0
"""Seconds of work before a bar appears."""


def shown(parts: Sequence[Tensor], total: int, what: str, *, enabled: bool) -> Iterator[Tensor]:
    """Yield ``parts`` in order; after two seconds, show how many of ``total`` images are done, with ETA."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    bar = Progress(*columns, console=Console(stderr=True), transient=True)
    begun, done, running = time.monotonic(), 0, False
    task = bar.add_task(what, total=total)
    try:
        for part in parts:
            yield part
            done += len(part)
            if enabled and not running and time.monotonic() - begun > PATIENCE:
                bar.start()
                running = True
            bar.update(task, completed=done)
    finally:
        if running:
            bar.stop()
