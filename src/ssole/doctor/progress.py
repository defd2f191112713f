"""What shows that the work goes on: on a terminal, and gone when it is done."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    def __call__(self, amount: int = 1) -> None: ...


@contextmanager
def progress_bar(what: str, total: int, *, enabled: bool) -> Iterator[Advance]:
    """Show how far the work is; the block calls what it is given to say that so much more is done."""
    from rich.console import Console
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    left = (TimeRemainingColumn(), TextColumn("left"))
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), *left)
    bar = Progress(*columns, console=console, transient=True, disable=not (enabled and console.is_terminal))
    with bar:
        task = bar.add_task(what, total=total)

        def advance(amount: int = 1) -> None:
            bar.advance(task, amount)

        yield advance


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
