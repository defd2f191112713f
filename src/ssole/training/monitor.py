"""What a person sees while a run trains, and what stays: a progress bar, metrics.jsonl, TensorBoard if installed."""

from __future__ import annotations

import importlib.util
import json
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ssole.losses.ssole import SSOLETerms
from ssole.training.checkpoint import Progress
from ssole.training.feed import Feed
from ssole.training.health import effective_rank
from ssole.training.run import Run
from ssole.training.waiting import WaitShare

Evaluator = Callable[[nn.Module], dict[str, float]]
"""From the backbone to named figures, such as {"knn20": 0.83}."""

_LONG_WAIT = 0.2  # share of the time; waiting longer than this for images is worth a word of advice
_PLAIN_EVERY = 15.0  # seconds between lines where there is no terminal to draw a bar on


class Monitor:
    """Logs one run; a context manager around its loop.

    Args:
        run: whose folder the logs go to.
        title: what is going on, shown at the start.
        total: steps of the whole run.
        done: where this sitting starts.
        feed: where the images come from; how long they are waited for is logged.
        progress: whether to show anything.
    """

    def __init__(self, run: Run, title: str, *, total: int, done: Progress, feed: Feed, progress: bool) -> None:
        self._run, self._title, self._done, self._feed = run, title, done, feed
        self._step, self._images, self._paused, self._prepared = done.step, 0, 0.0, 0.0
        self._waiting, self._advised = WaitShare(), False
        self._screen = _Screen(total, done.step, progress)

    def __enter__(self) -> Monitor:
        self._file = open(self._run.path / "metrics.jsonl", "a", encoding="utf-8")
        self._board = _tensorboard(self._run.path / "tensorboard", self._done.step)
        self._screen.start(f"{self._run.path}: {self._title}")
        self._start = time.perf_counter()
        self._waiting.add(0.0, self._feed.waited)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._screen.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()

    @property
    def seconds(self) -> float:
        """Training time over all sittings, without evaluation."""
        return self._done.seconds + self._trained

    @property
    def _trained(self) -> float:
        return time.perf_counter() - self._start - self._paused

    @property
    def _stepped(self) -> float:
        """Of it, what went into steps."""
        return self._trained - self._prepared

    @contextmanager
    def preparing(self, what: str) -> Iterator[None]:
        """Say what a person waits for before the first step. It counts as training, but not for the rate and ETA."""
        self._screen.start_waiting(what)
        begin = time.perf_counter()
        yield
        self._prepared += time.perf_counter() - begin
        self._screen.start_clock(what)

    def advance(self, images: int) -> None:
        """Count a step."""
        self._step += 1
        self._images += images
        self._waiting.add(self._stepped, self._feed.waited)
        self._screen.advance(self._step)

    @torch.no_grad()
    def log(self, epoch: int, lr: float, terms: SSOLETerms, z_BVD: torch.Tensor) -> None:
        """Write a line of metrics: the loss and its terms, and the effective rank of the first view's embeddings."""
        rate = self._images / max(1e-9, self._stepped)
        loss, low, high = (float(term) for term in (terms.total, terms.low_rank, terms.high_rank))
        row = {
            "step": self._step,
            "epoch": epoch,
            "loss": loss,
            "low_rank": low,
            "high_rank": high,
            "effective_rank": float(effective_rank(z_BVD[:, 0])),
            "lr": lr,
            "images_per_second": round(rate, 1),
            "data_wait": round(self._waiting.share, 4),
            "seconds": round(self.seconds, 3),
        }
        self._write(row)
        figures = f"loss {loss:.3f} (low rank {low:.3f}, high rank {high:.3f})"
        self._screen.note("loss", f"{rate:,.0f} images/s  {figures}  effective rank {row['effective_rank']:.0f}")
        self._tell_waiting()

    def evaluate(self, evaluator: Evaluator, backbone: nn.Module) -> None:
        """Run an evaluator and write its figures. Its time is not counted as training."""
        begin = time.perf_counter()
        figures = evaluator(backbone)
        self._paused += time.perf_counter() - begin
        self._write({"step": self._step, "seconds": round(self.seconds, 3), **figures})
        self._screen.note("evaluation", "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))

    def tell_stopping(self) -> None:
        """Show that a signal was heard, without printing."""
        self._screen.tell_stopping()

    def _tell_waiting(self) -> None:
        """Show the share of time that is spent waiting for images and, once, what would help when it is long."""
        share, advice = self._waiting.share, self._feed.advice()
        kept = " (while images are decoded, and kept for later epochs)" if share > _LONG_WAIT and advice is None else ""
        self._screen.note("data", f"waiting for data: {share:.0%}{kept}")
        if advice is not None and not self._advised and self._waiting.exceeds(_LONG_WAIT):
            self._advised = True
            self._screen.tell(f"{share:.0%} of the time is spent waiting for data: {advice}")

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name in row.keys() - {"step", "epoch"}:
                self._board.add_scalar(name, row[name], row["step"])


class _Screen:
    """A progress bar with a line of figures below it on a terminal; elsewhere a line now and then."""

    def __init__(self, total: int, done: int, show: bool) -> None:
        from rich.console import Console, Group
        from rich.live import Live
        from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
        from rich.text import Text

        console = Console(stderr=True)
        self._console, self._total, self._first, self._step = console, total, done, done
        self._show, self._live = show, show and console.is_terminal
        left = (TimeRemainingColumn(), TextColumn("left"))
        self._bar = Progress(TextColumn("step"), MofNCompleteColumn(), BarColumn(), *left, console=console)
        self._task = self._bar.add_task("", total=total, completed=done)
        self._notes: dict[str, str] = {}
        self._text = Text()
        self._display = Live(Group(self._bar, self._text), console=console, refresh_per_second=4)
        self._start = self._last_line = time.perf_counter()

    def start(self, title: str) -> None:
        self._start = time.perf_counter()
        if self._show:
            self._print(title)
        if self._live:
            self._display.start()

    def start_waiting(self, what: str) -> None:
        self._text.plain = what
        if self._show and not self._live:
            self._print(what)

    def start_clock(self, waited_for: str) -> None:
        """Take the time that is left from here on."""
        if self._text.plain == waited_for:
            self._text.plain = ""
        self._start = self._last_line = time.perf_counter()
        self._bar.reset(self._task, completed=self._first)

    def stop(self) -> None:
        if self._live:
            self._display.stop()

    def advance(self, step: int) -> None:
        self._step = step
        self._bar.update(self._task, completed=step)

    def tell(self, line: str) -> None:
        """Print a line, above the bar."""
        if self._show:
            self._print(line)

    def tell_stopping(self) -> None:
        if self._live:  # the display's own thread draws it
            self._text.plain = "stopping after this step; Ctrl-C again to stop at once"
        elif self._show:
            os.write(2, b"stopping after this step\n")

    def note(self, kind: str, text: str) -> None:
        """Show the newest text of its kind."""
        self._notes[kind] = text
        self._text.plain = note = "  ".join(self._notes.values())
        now = time.perf_counter()
        if self._show and not self._live and (now - self._last_line > _PLAIN_EVERY or self._step == self._total):
            self._last_line = now
            left = (now - self._start) / max(1, self._step - self._first) * (self._total - self._step)
            self._print(f"step {self._step}/{self._total}  {note}" + (f"  {duration(left)} left" if left else ""))

    def _print(self, line: str) -> None:
        self._console.print(line, soft_wrap=True, highlight=False, markup=False)


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, as one would say it."""
    for unit, size in (("h", 3600), ("min", 60)):
        if seconds >= 1.5 * size:
            return f"{seconds / size:.1f} {unit}"
    return f"{seconds:.0f} s"


def _tensorboard(folder: Path, done: int) -> Any:
    """A TensorBoard writer, or None when TensorBoard is not installed. What it showed after step `done` is dropped."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=done + 1 if done else None)
