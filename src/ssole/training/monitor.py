"""What a person sees while a run trains, and what stays: a progress bar, metrics.jsonl, TensorBoard if installed."""

from __future__ import annotations

import importlib.util
import json
import time
from collections.abc import Callable
from types import TracebackType
from typing import Any

import torch
from torch import nn

from ssole.losses.ssole import SSOLETerms
from ssole.training.checkpoint import Progress, Run
from ssole.training.health import effective_rank

Evaluator = Callable[[nn.Module], dict[str, float]]
"""From the backbone to named figures, such as {"knn20": 0.83}."""

_PLAIN_EVERY = 15.0  # seconds between lines where there is no terminal to draw a bar on


class Monitor:
    """Logs one run; a context manager around its loop.

    Args:
        run: whose folder the logs go to.
        total: steps of the whole run.
        done: where this sitting starts.
        progress: whether to show anything.
    """

    def __init__(self, run: Run, total: int, done: Progress, progress: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
        from rich.progress import Progress as Bar

        self._run, self._total, self._show = run, total, progress
        self._before, self._start = done.seconds, time.perf_counter()
        self._first, self._images, self._paused = done.step, 0, 0.0
        self._console = Console(stderr=True)
        columns = (
            TextColumn("step"),
            MofNCompleteColumn(),
            BarColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[note]}"),
        )
        self._bar = Bar(*columns, console=self._console, disable=not (progress and self._console.is_terminal))
        self._task = self._bar.add_task("", total=total, completed=done.step, note="")
        self._notes: dict[str, str] = {}
        self._last_line = float("-inf")
        self._step = done.step

    def __enter__(self) -> Monitor:
        self._file = open(self._run.path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed in __exit__
        self._board = _tensorboard(self._run)
        self._bar.start()
        self._start = time.perf_counter()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._bar.stop()
        self._file.close()
        if self._board is not None:
            self._board.close()

    @property
    def seconds(self) -> float:
        """Training time over all sittings, without evaluation."""
        return self._before + time.perf_counter() - self._start - self._paused

    def advance(self, images: int) -> None:
        """Count a step."""
        self._step += 1
        self._images += images
        self._bar.update(self._task, completed=self._step)

    @torch.no_grad()
    def log(self, step: int, epoch: int, lr: float, terms: SSOLETerms, z_BVD: torch.Tensor) -> None:
        """Write a line of metrics: the loss and its terms, and the effective rank of the first view's embeddings."""
        rate = self._images / max(1e-9, time.perf_counter() - self._start - self._paused)
        row = {
            "step": step,
            "epoch": epoch,
            "loss": float(terms.total),
            "low_rank": float(terms.low_rank),
            "high_rank": float(terms.high_rank),
            "effective_rank": float(effective_rank(z_BVD[:, 0])),
            "lr": lr,
            "images_per_second": round(rate, 1),
            "seconds": round(self.seconds, 3),
        }
        self._write(row)
        self._notes["loss"] = (
            f"{rate:,.0f} images/s  loss {row['loss']:.3f} = low {row['low_rank']:.3f} + w x high {row['high_rank']:.3f}"
            f"  effective rank {row['effective_rank']:.0f}"
        )
        self._show_notes(step)

    def evaluate(self, step: int, evaluator: Evaluator, backbone: nn.Module) -> None:
        """Run an evaluator and write its figures. Its time is not counted as training."""
        begin = time.perf_counter()
        figures = evaluator(backbone)
        self._paused += time.perf_counter() - begin
        self._write({"step": step, "seconds": round(self.seconds, 3), **figures})
        self._notes["evaluation"] = "  ".join(f"{name} {value:.1%}" for name, value in figures.items())
        self._show_notes(step)

    def _write(self, row: dict[str, Any]) -> None:
        self._file.write(json.dumps(row) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name not in ("step", "epoch"):
                    self._board.add_scalar(name, value, row["step"])

    def _show_notes(self, step: int) -> None:
        note = "  ".join(self._notes.values())
        self._bar.update(self._task, note=note)
        due = time.perf_counter() - self._last_line > _PLAIN_EVERY or step == self._total
        if self._show and not self._console.is_terminal and due:
            self._last_line = time.perf_counter()
            left = self._remaining(step)
            self._console.print(f"step {step}/{self._total}  {note}  {left}", soft_wrap=True, highlight=False)

    def _remaining(self, step: int) -> str:
        spent = time.perf_counter() - self._start
        seconds = spent / max(1, step - self._first) * (self._total - step)
        return f"{seconds / 60:.1f} min left" if seconds >= 60 else f"{seconds:.0f} s left"


def _tensorboard(run: Run) -> Any:
    """A TensorBoard writer into the run folder, or None when TensorBoard is not installed."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(run.path / "tensorboard"))  # type: ignore[no-untyped-call]
