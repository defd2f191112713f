"""Console output of a run: a progress bar with figures on a terminal, and lines elsewhere."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from ssole.errors import printable
from ssole.progress import duration, error_console, shows_live

_PLAIN_EVERY = 15.0  # seconds between lines where there is no terminal to draw a bar on


class Screen:
    """Progress bar with a line of figures below it on a terminal; a line now and then elsewhere; or nothing.

    `total` are the steps of the whole run, and `done` those of earlier processes.
    """

    def __init__(self, total: int, done: int, show: bool) -> None:
        from rich.console import Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as ProgressBar
        from rich.text import Text

        console = error_console()
        self._console, self._total, self._first, self._step = console, total, done, done
        self._show, self._live = show, show and shows_live(console)
        left = (TimeRemainingColumn(), TextColumn("left"))
        self._bar = ProgressBar(TextColumn("step"), MofNCompleteColumn(), BarColumn(), *left, console=console)
        self._task = self._bar.add_task("", total=total, completed=done)
        self._notes: dict[str, str] = {}
        self._text = Text()
        self._display = Live(Group(self._bar, self._text), console=console, refresh_per_second=4)
        self._start = self._last_line = time.perf_counter()

    def start(self, title: str) -> None:
        """Show the title, and the bar."""
        self._start = time.perf_counter()
        self.print_line(title)
        if self._live:
            self._display.start()

    @contextmanager
    def waiting(self, what: str) -> Iterator[None]:
        """Context that shows `what` is being done. The remaining time is estimated from the steps after it."""
        self._text.plain = what
        if not self._live:
            self.print_line(what)
        yield
        if self._text.plain == what:
            self._text.plain = ""
        self._start = self._last_line = time.perf_counter()
        self._bar.reset(self._task, completed=self._first)

    def stop(self) -> None:
        """Remove the bar, or print the last figures."""
        if self._live:
            with suppress(OSError):  # the terminal has gone, which sent SIGHUP
                self._display.stop()
        elif self._notes and self._step == self._total:
            self._print_notes(left=0.0)  # only here, when the figures of the last step are complete

    def advance(self, step: int, total: int) -> None:
        """Move the bar to a step, counted from 1."""
        self._step, self._total = step, total
        self._bar.update(self._task, completed=step, total=total)

    def show_stopping(self) -> None:
        """Show that a signal arrived. Called inside a signal handler, so it does not print."""
        if self._live:  # the display's own thread draws it
            self._text.plain = "stopping after this step; Ctrl-C again to stop at once"
        elif self._show:
            with suppress(OSError):  # the terminal has gone, which sent SIGHUP
                os.write(2, b"stopping after this step\n")

    def note(self, kind: str, text: str) -> None:
        """Show the newest figures of a kind, beside those of other kinds."""
        self._notes[kind] = text
        self._text.plain = "  ".join(self._notes.values())
        now = time.perf_counter()
        if not self._live and now - self._last_line > _PLAIN_EVERY and self._step < self._total:
            self._last_line = now
            self._print_notes((now - self._start) / max(1, self._step - self._first) * (self._total - self._step))

    def print_line(self, line: str) -> None:
        """Print a line; on a terminal, above the bar."""
        if self._show:
            with suppress(OSError):  # a terminal that has gone does not end a run
                self._console.print(printable(line), soft_wrap=True, highlight=False, markup=False)

    def _print_notes(self, left: float) -> None:
        figures = "  ".join(self._notes.values())
        self.print_line(f"step {self._step}/{self._total}  {figures}" + (f"  {duration(left)} left" if left else ""))
