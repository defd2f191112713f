"""Guardian: what a run does about a loss that is not finite, and about embeddings that collapse.

After such a loss, the run goes back to its newest regular checkpoint and continues at half the learning rate, at most
three times. A collapse gives a warning, and stops the run if it lasts. The guardian's only memory is what it wrote to
metrics.jsonl, so an interrupted run continues as it would have without the interruption.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ssole import distributed
from ssole.config import PretrainConfig
from ssole.errors import quoted
from ssole.models.custom import is_custom
from ssole.training.checkpoint import Progress, checkpoint_steps, load_checkpoint, remove_checkpoints_after
from ssole.training.pace import Pace
from ssole.training.replay import save_bundle, whole_batch
from ssole.training.run import Run
from ssole.training.step import Batch, Learner
from ssole.training.watch import NonFiniteLossError

FACTOR = 0.5
"""Factor of the learning rate after a failure, for the rest of the run."""
TRIES = 3
"""Times that a run goes on at a lower rate. The next failure ends it."""
RANK_SHARE = 0.02
"""Share of the possible rank below which embeddings have collapsed. In `experiments/guardian.py`, runs that learn
have at least 0.11, and runs without anything that spreads embeddings end at 0.003 or less."""
LEAST_STEPS, LEAST_PART = 200, 0.02
"""Steps, and part of the run, that a collapse lasts before the run is stopped. After half of that it is warned of."""
_ADVICE = {
    "ssole": ("raise", "high_rank_weight"),
    "simclr": ("lower", "temperature"),
    "vicreg": ("raise", "variance_weight"),
    "frossl": ("lower", "invariance_weight"),
    "mmcr": ("lower", "local_weight"),
    "lejepa": ("raise", "sigreg_weight"),
}
"""Setting of a loss that spreads embeddings, and where to move it."""


Note = Callable[[int, Mapping[str, Any]], None]
"""Function that writes an intervention of a step to metrics.jsonl, and shows it."""


class CollapseError(RuntimeError):
    """Error for embeddings that have been nearly the same for all images for long; it names the change to make."""


class Guardian:
    """Guardian of a run, whose config may switch it off. `pace` knows the regular checkpoints and the run's length."""

    def __init__(self, run: Run, learner: Learner, pace: Pace) -> None:
        self._run, self._learner, self._pace = run, learner, pace
        self._is_on = learner.config.guardian == "auto"
        self.read_metrics()

    @property
    def rate(self) -> float:
        """Factor of the learning rate."""
        return FACTOR**self._lowered

    def read_metrics(self) -> None:
        """Restore the state from metrics.jsonl. Called at the start, and whenever rows were removed from the file."""
        self._lowered = distributed.on_rank_0(self._read_metrics)

    def _read_metrics(self) -> int:
        """Number of times that the rate was lowered. The beginning of a collapse is restored too."""
        self._collapsed_since: int | None = None
        self._warned, rows = False, self._run.metrics
        for row in rows:
            self._warned |= row.get("guardian") == "warning"
            if "effective_rank" in row:
                self._follow(row)
        return sum(row.get("guardian") == "lower rate" for row in rows)

    def look(self, row: Mapping[str, Any], note: Note) -> None:
        """Look for a collapse in a line of metrics; note a warning, or the end of the run, which is a CollapseError."""
        if not self._is_on:
            return
        lasting, limit = self._follow(row), patience(self._learner.config, self._pace.total)
        is_over = lasting >= limit
        if not is_over and (self._warned or 2 * lasting < limit):
            return
        reason = (
            f"the embeddings have collapsed: all images look nearly alike to the network, with an effective rank of "
            f"{row['effective_rank']:.2f} since step {self._collapsed_since}. {_advice(self._learner.config)}"
        )
        note(row["step"], {"guardian": "stop" if is_over else "warning", "reason": reason})
        if is_over:
            raise CollapseError(
                f"step {row['step']}: {reason}. To go on regardless, set guardian: off in config.yaml, and "
                f"ssole pretrain --resume {quoted(self._run.path)} --allow-changes settings"
            )
        self._warned = True

    def _follow(self, row: Mapping[str, Any]) -> int:
        """Take note of a line of metrics: the number of steps that a collapse has lasted then."""
        if rank_share(row, self._learner.config) >= RANK_SHARE:
            self._collapsed_since, self._warned = None, False
            return 0
        if self._collapsed_since is None:
            self._collapsed_since = int(row["step"])
        return int(row["step"]) - self._collapsed_since

    def recover(self, error: NonFiniteLossError, note: Note) -> tuple[Progress, dict[str, Any]]:
        """Restore the last good state. Returns where training continues, and the intervention for metrics.jsonl.

        If the run ends here, `note` writes a row for the step that failed. All checkpoints are of earlier steps, so
        resuming removes that row again.

        On an accelerator, a failure is found some steps late. The first time, the steps are repeated and each is
        checked at once, so that the replay bundle holds the weights from before the failure. The error is raised again
        if the guardian is off, or lower rates have not helped.
        """
        if not self._is_on:
            raise error
        facts = {"failed": error.step, "reason": error.what}
        if not self._learner.watch.looks_at_once(error.step):
            self._learner.watch.at_once_until = error.step
            return self._go_back(), {"guardian": "look at each step", **facts}
        batch = whole_batch(self._learner.batch)
        kept = distributed.on_rank_0(lambda: self._save_bundle(error, batch))
        if self._lowered == TRIES:
            distributed.on_rank_0(lambda: note(error.step, {"guardian": "stop", **facts, "bundle": kept}))
            bundle = self._run.path / kept if kept else None
            raise NonFiniteLossError(error.step, error.what, _explanation(bundle, self._learner.config)) from error
        rate = FACTOR * self.rate
        return self._go_back(), {"guardian": "lower rate", "rate": rate, **facts, "bundle": kept}

    def _save_bundle(self, error: NonFiniteLossError, batch: Batch) -> str | None:
        """Path of the bundle in the run, or None if it could not be written."""
        try:
            return str(save_bundle(self._run, self._learner, error, batch).relative_to(self._run.path))
        except OSError as problem:
            warnings.warn(f"no replay bundle of step {error.step} could be written: {problem}", stacklevel=4)
            return None

    def _go_back(self) -> Progress:
        """Restore the newest regular checkpoint, of step 0 if there is no other. Later checkpoints are removed.

        They are removed before the intervention is written. If the process is killed in between, the run comes to the
        same failure again.
        """

        def remove_later() -> None:
            if regular := [step for step in checkpoint_steps(self._run) if self._pace.is_regular(step)]:
                remove_checkpoints_after(self._run, max(regular))  # old runs, or changed settings, may have none

        distributed.on_rank_0(remove_later)
        done = load_checkpoint(self._run, self._learner.modules, self._learner.optimizer)
        self._learner.go_on_from(done.step)
        return done


def _explanation(bundle: Path | None, config: PretrainConfig) -> str:
    rates = ", ".join(f"{FACTOR**n:g}" for n in range(1, TRIES + 1))
    own = [*(["loss"] if config.loss.name == "custom" else []), *(["backbone"] if is_custom(config.model) else [])]
    how = f"ssole replay {quoted(bundle)}"
    if own:  # which the command does not have
        how = f"ssole.training.replay.replay(Path('{bundle}'), {', '.join(f'{name}=module' for name in own)}) in Python"
    look = "" if bundle is None else f". To look at the step: {how}"
    return (
        f"It failed at {rates} times the learning rate too: lower optim.lr by more, or set optim.warmup_steps or "
        f"optim.clip_grad_norm{look}"
    )


def rank_share(row: Mapping[str, Any], config: PretrainConfig) -> float:
    """Effective rank in a line of metrics on a scale from 0, one direction for all images, to 1, the most possible."""
    most = min(config.batch_size, config.projector.dim) if config.projector.layers else config.batch_size
    return (float(row["effective_rank"]) - 1) / max(1, most - 1)


def patience(config: PretrainConfig, steps: int) -> int:
    """Steps that a collapse may last in a run of so many steps."""
    return max(LEAST_STEPS, round(LEAST_PART * steps), 2 * config.optim.warmup_steps)


def _advice(config: PretrainConfig) -> str:
    """Settings to change after a collapse, as a sentence."""
    rate = f"lower optim.lr (now {config.optim.lr:g})"
    if config.loss.name == "ole":
        return f"Without labels, OLE collapses: choose loss.name ssole, or {rate}"
    if config.loss.name not in _ADVICE:
        return rate[0].upper() + rate[1:]
    move, name = _ADVICE[config.loss.name]
    return f"{move.capitalize()} loss.{name} (now {getattr(config.loss, name):g}), or {rate}"
