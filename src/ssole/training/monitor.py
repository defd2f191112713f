"""Monitor of a run: what is shown, metrics.jsonl, and TensorBoard if it is installed."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, TextIO

import torch
import torch.nn.functional as F
from torch import nn

from ssole import distributed
from ssole.config import ConfigError
from ssole.losses.base import RESERVED
from ssole.spectrum import effective_rank
from ssole.training.checkpoint import Progress
from ssole.training.feed import Feed
from ssole.training.run import Run, rewind, writing
from ssole.training.screen import Screen

Evaluator = Callable[[nn.Module], dict[str, float]]
"""Function from the backbone to named figures, such as {"knn20": 0.83}."""

_LONG_WAIT = 0.2  # share of the time; above it, waiting for images is worth a hint
_WINDOW = 60.0  # seconds that this share is taken over
_PATIENCE = 30.0  # seconds before a long wait is believed to last: the first batches are always waited for
_RESERVED_NAMES = RESERVED | {"loss", "guardian"}  # names of the other figures in metrics.jsonl
_SHOWN_TERMS = 2  # terms of the loss beside it; metrics.jsonl has all


class Monitor:
    """Logger of one run; a context manager around its training loop, which begins at `done` and has `total` steps.

    The title is printed at the start, and the time spent waiting for the feed is logged. With `progress`, things are
    shown on its `screen`.
    """

    def __init__(self, run: Run, title: str, *, total: int, done: Progress, feed: Feed, progress: bool) -> None:
        self._run, self._title, self._done, self._feed = run, title, done, feed
        self._step, self._images, self._evaluated, self._prepared = done.step, 0, 0.0, 0.0
        self._waiting, self._hinted = WaitShare(), False
        self._file: TextIO | None = None  # made by the first step: until then, a failed start leaves nothing
        self._writes = distributed.rank() == 0
        self.screen = Screen(total, done.step, progress and self._writes)

    def __enter__(self) -> Monitor:
        self._board = _tensorboard(self._run.path / "tensorboard", self._done.step) if self._writes else None
        self.screen.start(f"{self._run.path}: {self._title}")
        self._start = time.perf_counter()
        self._waiting.add(0.0, self._feed.waited)
        return self

    def __exit__(self, *error: object) -> None:
        self.screen.stop()
        if self._file is not None:
            with suppress(OSError):  # every line was written already, or this error was raised
                self._file.close()
        if self._board is not None:
            self._board.close()

    @property
    def seconds(self) -> float:
        """Training time of the whole run so far, evaluation left out."""
        return self._done.seconds + self._prepared + self._stepped

    @property
    def evaluating(self) -> float:
        """Seconds of evaluation of the whole run so far."""
        return self._done.evaluating + self._evaluated

    @property
    def _stepped(self) -> float:
        """Training time in this process, preparation left out."""
        return time.perf_counter() - self._start - self._evaluated - self._prepared

    @contextmanager
    def preparing(self, what: str) -> Iterator[None]:
        """Context that shows what happens before the first step. It counts as training, but not for rate and ETA."""
        begin = time.perf_counter()
        with self.screen.waiting(what):
            yield
        self._prepared += time.perf_counter() - begin

    def advance(self, images: int, total: int) -> None:
        """Count one step of so many images, in a run of so many steps."""
        if not self._images:
            distributed.on_rank_0(self._open_file)
        self._step += 1
        self._images += images
        self._waiting.add(self._stepped, self._feed.waited)
        self.screen.advance(self._step, total)

    @torch.no_grad()
    def log(self, epoch: int, lr: float, terms: Mapping[str, torch.Tensor], z_BD: torch.Tensor) -> dict[str, Any]:
        """Write a line of metrics: the loss and its terms, and the effective rank of one view's embeddings (B, D)."""
        rate = self._images / max(1e-9, self._stepped)
        values = dict(zip(terms, torch.stack([*terms.values()]).tolist(), strict=True))
        row = {
            "step": self._step,
            "epoch": epoch,
            **_as_json(values),
            "effective_rank": float(effective_rank(F.normalize(z_BD.double(), dim=-1))),
            "lr": lr,
            "images_per_second": round(rate, 1),
            "data_wait": round(self._waiting.share, 4),
            "seconds": round(self.seconds, 3),
        }
        self._write(row)
        total, *parts = (f"{name.replace('_', ' ')} {value:.3f}" for name, value in values.items())
        figures = total + (f" ({', '.join(parts[:_SHOWN_TERMS])})" if parts else "")
        self.screen.note("loss", f"{rate:,.0f} images/s  {figures}  effective rank {row['effective_rank']:.0f}")
        self._show_waiting()
        return row

    def evaluate(self, evaluator: Evaluator, backbone: nn.Module) -> None:
        """Run an evaluator and write its figures, in the first process. Its time does not count as training."""
        begin = time.perf_counter()
        try:
            figures = evaluator(backbone)
        finally:  # also if a signal interrupts it
            self._evaluated += time.perf_counter() - begin
        row = {"step": self._step, "seconds": round(self.seconds, 3), **_as_json(figures)}
        distributed.on_rank_0(lambda: self._write(row))
        if figures:
            self.screen.note("evaluation", "  ".join(f"{name} {value:.3f}" for name, value in figures.items()))

    def go_back(self, done: Progress, intervention: Mapping[str, Any]) -> None:
        """Continue from an earlier step: later metrics are removed, and the intervention is written in their place."""
        if self._file is not None:
            self._file.close()
        self._step, self._file = done.step, None
        distributed.on_rank_0(lambda: self._rewind(done.step, intervention))

    def _rewind(self, step: int, intervention: Mapping[str, Any]) -> None:
        row = {"step": step, "seconds": round(self.seconds, 3), **intervention}
        rewind(self._run, step, row)
        if self._board is not None:
            self._board.close()
            self._board = _tensorboard(self._run.path / "tensorboard", step)
        facts = ", ".join(f"{name} {value}" for name, value in intervention.items() if name != "guardian")
        self.screen.print_line(f"guardian: back to step {step}, {intervention['guardian']} ({facts})")

    def note(self, step: int, intervention: Mapping[str, Any]) -> None:
        """Write an intervention of the guardian that does not change where the run is, and show a warning."""
        self._write({"step": step, "seconds": round(self.seconds, 3), **intervention})
        if intervention["guardian"] == "warning":  # if not, an error ends the run and says it
            self.screen.print_line(f"guardian: {intervention['reason']}")

    def flush(self) -> None:
        """Flush the metrics to the disk, so that a power cut leaves those up to each checkpoint."""
        if self._file is not None:
            with writing(self._run, "metrics.jsonl"):
                os.fsync(self._file.fileno())

    def _show_waiting(self) -> None:
        """Show the share of time spent waiting for images and, once, a hint if that is long."""
        share, hint = self._waiting.share, self._feed.hint()
        kept = " (while images are decoded, and kept for later epochs)" if share > _LONG_WAIT and hint is None else ""
        self.screen.note("data", f"waiting for data: {share:.0%}{kept}")
        if hint is not None and not self._hinted and self._waiting.exceeds(_LONG_WAIT):
            self._hinted = True
            self.screen.print_line(f"{share:.0%} of the time is spent waiting for data: {hint}")

    def _open_file(self) -> None:
        """Open metrics.jsonl for writing at its end, unless it is open."""
        if self._file is None:
            with writing(self._run, "metrics.jsonl"):
                self._file = open(self._run.path / "metrics.jsonl", "a", encoding="utf-8")  # noqa: SIM115 - closed on exit

    def _write(self, row: dict[str, Any]) -> None:
        self._open_file()
        assert self._file is not None
        with writing(self._run, "metrics.jsonl"):
            self._file.write(json.dumps(row) + "\n")
            self._file.flush()
        if self._board is not None:
            for name, value in row.items():
                if name not in {"step", "epoch"} and isinstance(value, (int, float)):
                    self._board.add_scalar(name, value, row["step"])


def _as_json(figures: Mapping[str, float]) -> dict[str, float | None]:
    """Figures with None for those that are not finite, which JSON has no numbers for."""
    return {name: figure if math.isfinite(figure) else None for name, figure in figures.items()}


def check_evaluators(given: object) -> None:
    """Raise a ConfigError unless evaluators map numbers of steps to functions."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"evaluators are {{steps: function}}, got {given!r:.80}")
    for every, evaluator in given.items():
        if not isinstance(every, int) or every < 1:
            raise ConfigError(f"evaluators run every so many steps, a whole number of at least 1; got {every!r:.80}")
        if not callable(evaluator):
            raise ConfigError(
                f"the evaluator of every {every} steps is a function of the backbone; got {evaluator!r:.80}"
            )


def require_same_evaluators(given: Mapping[int, Evaluator] | None) -> None:
    """Raise a ConfigError unless all processes were given evaluators of the same steps: they would wait forever."""
    steps = distributed.collect(None if given is None else list(given))
    if others := [found for found in steps if found != steps[0]]:
        raise ConfigError(
            f"the first process was given evaluators of the steps {steps[0] or 'none'}, and another one of "
            f"{others[0] or 'none'}: give all processes the same, of which the first alone calls them"
        )


def figures_of(evaluator: Evaluator, backbone: nn.Module) -> dict[str, float]:
    """Figures of a custom evaluator, called by the first process alone, as plain numbers on every process.

    The backbone is in evaluation mode, so that looking at it does not move the statistics of its batch norms. Anything
    but numbers by name, or a name that lines of metrics.jsonl already use, is a ValueError.
    """

    def evaluate() -> dict[str, float]:
        trained = [parameter.requires_grad for parameter in backbone.parameters()]
        figures: object = evaluator(backbone.eval())
        for parameter, requires_grad in zip(backbone.parameters(), trained, strict=True):
            parameter.requires_grad_(requires_grad)
        if not isinstance(figures, Mapping) or _RESERVED_NAMES & figures.keys():
            names = ", ".join(sorted(_RESERVED_NAMES))
            raise ValueError(f"an evaluator gives figures by name, and none as {names}; got {figures}")
        return {name: _number(name, figure) for name, figure in figures.items()}

    return distributed.on_rank_0(evaluate)


def _number(name: str, figure: Any) -> float:
    """Figure of an evaluator, which may be NumPy's or a tensor."""
    try:
        return float(figure)
    except (TypeError, ValueError, RuntimeError):  # torch's, of several numbers
        raise ValueError(f"the figure {name!r} of an evaluator is a number; got {figure!r:.80}") from None


class WaitShare:
    """Share of the last minute that was spent waiting."""

    def __init__(self) -> None:
        self._points: deque[tuple[float, float]] = deque()

    def add(self, trained: float, waited: float) -> None:
        """Add a point: seconds of training so far, and seconds of them spent waiting. Neither ever falls."""
        self._points.append((trained, waited))
        while len(self._points) > 2 and self._points[1][0] <= trained - _WINDOW:
            self._points.popleft()

    @property
    def share(self) -> float:
        """The share, in [0, 1]; 0 before any time has passed."""
        if not self._points:
            return 0.0
        (begin, before), (end, after) = self._points[0], self._points[-1]
        return min(1.0, (after - before) / (end - begin)) if end > begin else 0.0

    def exceeds(self, limit: float) -> bool:
        """Whether the share is above a limit, and not only at the start."""
        return bool(self._points) and self._points[-1][0] >= _PATIENCE and self.share > limit


def _tensorboard(folder: Path, done: int) -> Any:
    """TensorBoard writer, or None if TensorBoard is not installed. What was shown after step `done` is dropped."""
    if importlib.util.find_spec("tensorboard") is None:
        return None
    from torch.utils.tensorboard import SummaryWriter

    return SummaryWriter(str(folder), purge_step=done + 1 if done else None)
