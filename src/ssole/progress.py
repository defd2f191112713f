"""Progress of work that takes more than two seconds, by bars on a terminal and lines elsewhere; amounts in words."""

from __future__ import annotations

import io
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import TYPE_CHECKING, Protocol, cast

from ssole.errors import printable

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

PATIENCE = 2.0
"""Seconds of work before a bar appears."""
LINE_EVERY = 60.0
"""Seconds between lines where there is no terminal, as in the log of a job."""


class Advance(Protocol):
    """Function that reports so many more items as done."""

    def __call__(self, amount: int = 1) -> None: ...


def shows_live(console: Console) -> bool:
    """Whether a console can redraw its lines; rich draws nothing on a terminal that cannot."""
    return console.is_terminal and not console.is_dumb_terminal


def error_console() -> Console:
    """Console on standard error. If that is a closed pipe, as after ``2>&1 | head``, nothing more is printed."""
    from rich.console import Console

    console = Console(stderr=True)

    def on_broken_pipe() -> None:
        console.quiet = True

    console.on_broken_pipe = on_broken_pipe  # type: ignore[method-assign]  # rich's own ends the process
    return console


@contextmanager
def progress_bar(what: str, total: int, *, enabled: bool) -> Iterator[Advance]:
    """Progress bar with ETA, which disappears when the work is done. The block gets a function that advances it.

    Where there is no terminal, or one that cannot draw, a line says once a minute how far the work is.
    """
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = error_console()
    if enabled and not shows_live(console):
        yield _lines(what, total)
        return
    left = (TimeRemainingColumn(), TextColumn("left"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *left)
    bar = Progress(*columns, console=console, transient=True, disable=not enabled)
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


def _lines(what: str, total: int) -> Advance:
    begin = last_line = time.monotonic()
    done = 0

    def advance(amount: int = 1) -> None:
        nonlocal done, last_line
        done, now = done + amount, time.monotonic()
        if now - last_line > LINE_EVERY:
            last_line = now
            say(f"{what}: {done:,} of {total:,}, about {duration((now - begin) / max(done, 1) * (total - done))} left")

    return advance


@contextmanager
def spinner(what: str, *, enabled: bool) -> Iterator[None]:
    """Spinner for work whose length is not known."""
    console = error_console()
    if not (enabled and shows_live(console)):
        yield
        return
    with console.status(what):
        yield


def as_text(table: Table) -> str:
    """Text of a table of rich, without colours, as a notebook shows it."""
    from rich.console import Console

    console = Console(file=io.StringIO(), width=120, color_system=None)
    console.print(table)
    return cast(io.StringIO, console.file).getvalue().rstrip()


def output_console() -> Console:
    """Console on standard output. A pipe that was closed, as by ``| head``, is a BrokenPipeError."""
    from rich.console import Console

    console = Console()

    def on_broken_pipe() -> None:
        raise BrokenPipeError

    console.on_broken_pipe = on_broken_pipe  # type: ignore[method-assign]  # rich's own ends the process with 1
    return console


def say(line: str, *, enabled: bool = True) -> None:
    """Print a line about the work to standard error, without characters of file names that steer a terminal."""
    if enabled:
        with suppress(OSError):  # a pipe that is closed, or a terminal that has gone, ends no work
            print(printable(line), file=sys.stderr, flush=True)


def duration(seconds: float) -> str:
    """Seconds in words: 45 s, 12.5 min or 3.0 h."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def data_size(size: float) -> str:
    """Bytes in words: 200 B, 1.5 MiB or 3.0 GiB."""
    for unit, one in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if size >= one:
            return f"{size / one:.1f} {unit}"
    return f"{size:.0f} B"
