"""What shows on a terminal that work goes on, where it takes long enough to wonder; gone when it is done."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

PATIENCE = 2.0
"""Seconds of work before a bar appears."""


class Advance(Protocol):
    def __call__(self, amount: int = 1) -> None: ...


@contextmanager
def progress_bar(what: str, total: int, *, enabled: bool) -> Iterator[Advance]:
    """Show how far the work is, with ETA; the block calls what it is given to say that so much more is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    left = (TimeRemainingColumn(), TextColumn("left"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *left)
    bar = Progress(*columns, console=console, transient=True, disable=not (enabled and console.is_terminal))
    task = bar.add_task(what, total=total)
    begin = time.monotonic()

    def advance(amount: int = 1) -> None:
        if not bar.live.is_started and time.monotonic() - begin > PATIENCE:
            bar.start()
        bar.advance(task, amount)

    try:
        yield advance
    finally:
        if bar.live.is_started:
            bar.stop()


@contextmanager
def spinner(what: str, *, enabled: bool) -> Iterator[None]:
    """Show that something is going on whose end is not known in images."""
    from rich.console import Console

    console = Console(stderr=True)
    if not (enabled and console.is_terminal):
        yield
        return
    with console.status(what):
        yield
