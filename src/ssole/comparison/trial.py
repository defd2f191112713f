"""One trial of a comparison: a run that is trained, scored and recorded in `trial.json` in its folder."""

from __future__ import annotations

import shutil
import signal
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ssole import api
from ssole.config import ConfigError, PretrainConfig
from ssole.data.base import Spec
from ssole.errors import DataError, DiskError, change_refused
from ssole.evaluation.evaluate import evaluate
from ssole.files import read_json, reading, write_json_atomically
from ssole.runtime import forget_peak_memory, peak_memory, resolve_device
from ssole.training.loop import Given
from ssole.training.run import Change, Run, lock_run, making
from ssole.training.stopping import Interrupted

if TYPE_CHECKING:
    from ssole.training.monitor import Evaluator

RANKED_BY = "knn20"
"""Metric that arms are ranked by, in the search and in the result."""
_FILE = "trial.json"
FAILURES = (ArithmeticError, ImportError, MemoryError, RuntimeError, ValueError)
"""Errors that count as the failure of a method. A full disk, unusable images or Ctrl-C end the comparison instead."""
BROKEN_GPU: tuple[type[Exception], ...] = (torch.AcceleratorError,) if hasattr(torch, "AcceleratorError") else ()
"""Errors after which a GPU does nothing more in this process, whatever the method. Older torch has no such class."""


@dataclass(frozen=True, kw_only=True)
class Trial:
    """Record of a trial: its scores, time and memory, or why it failed."""

    steps: int
    seed: int
    settings: dict[str, Any]
    """Settings that differ from the arm's, by dotted name."""
    scores: dict[str, float] = field(default_factory=dict)
    """Figures by name, as in :data:`ssole.evaluation.results.METRICS`; accuracies are shares in [0, 1]."""
    seconds: float | None = None
    """Time of training, without evaluation."""
    images_per_second: float | None = None
    peak_memory: int | None = None
    """Bytes: of the process on a CPU, of the tensors on a GPU. None where it was not measured from the start."""
    curve: list[dict[str, float]] = field(default_factory=list)
    """Points along the run: {"images", "seconds", "knn20", "effective_rank"}; the rank is that of the last log line."""
    error: str | None = None
    """Why the trial failed; None if it did not."""


@contextmanager
def resumable(folder: Path, command: str) -> Iterator[None]:
    """Folder of trials, made and locked for this process; a signal or a full disk names the `command` to go on with."""
    with making(folder, "folder"):
        folder.mkdir(parents=True, exist_ok=True)
    try:
        with lock_run(Run(folder)):
            yield
    except KeyboardInterrupt as stop:
        message = f"stopped; go on with: {command}"
        raise Interrupted(message, int(getattr(stop, "signal_number", signal.SIGINT))) from None
    except BrokenPipeError:  # of the program that reads the output
        raise
    except OSError as error:
        problem = getattr(error, "problem", error)  # without the command that goes on with one run alone
        raise OSError(f"{problem}. Once this is fixed, go on with: {command}") from error


def other_version_error(folder: Path, begun: str, now: str) -> ConfigError:
    """Error for trials in a folder that another version of ssole has begun."""
    return change_refused(f"{folder} was begun with ssole {begun}, and this is {now}", "version")


def describe_failure(error: Exception) -> str:
    """One line that says why a method failed."""
    return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"


def read_trial(folder: Path) -> Trial | None:
    """Record of a finished trial; None if the trial has not finished."""
    path = folder / _FILE
    if not path.is_file():
        return None
    with reading(path, f"remove {folder} to train that run anew"):
        return Trial(**read_json(path))


def score_run(run: Run, data: Spec, **options: Any) -> dict[str, float]:
    """Scores of a run's trained backbone by metric; `options` are those of :func:`ssole.evaluate`."""
    result = evaluate(run, data, baselines=False, device=run.config.device, **options)
    scores = {name: score.value for name, score in result.rows["trained"].items()}
    if RANKED_BY not in scores and "knn" in options["protocol"]:
        raise DataError(f"too few images can be read ({result.train}): methods are ranked by kNN with k = 20")
    return scores


def run_trial(
    folder: Path,
    config: PretrainConfig,
    data: Spec,
    measure: Callable[[Run], dict[str, float]],
    *,
    settings: Mapping[str, Any],
    loss: nn.Module | None = None,
    evaluators: Callable[[], Mapping[int, Evaluator]] = dict,
    progress: bool = True,
    check: Callable[[], None] = lambda: None,
    allow_changes: Collection[Change] = (),
) -> Trial:
    """Record of a trial, which is trained or goes on from its newest checkpoint, unless it has finished already.

    `measure` gives the scores of the finished run, and `evaluators`, called only to train, what :func:`ssole.pretrain`
    takes. `settings` are recorded as those of the trial. `loss` is the module of a loss of your own. `check` is
    called before training, and `allow_changes` is for a trial that goes on, as in :func:`ssole.resume`.

    An error that is no failure of the method is raised, and nothing is recorded: a DataError, a DiskError, a broken
    GPU, or a ConfigError if the trial has begun and cannot go on, such as with another version of ssole.
    """
    if (done := read_trial(folder)) is not None:
        return done
    check()
    assert config.steps is not None
    record = Trial(steps=config.steps, seed=config.seed, settings=dict(settings))
    device = resolve_device(config.device)
    measures_memory = forget_peak_memory(device) and not folder.exists()
    has_begun = (folder / "config.yaml").is_file()
    try:
        if not has_begun:
            shutil.rmtree(folder, ignore_errors=True)  # of a process that was killed before it began
        given = Given(loss=loss, evaluators=evaluators(), progress=progress)
        if has_begun:
            run = api.resume(folder, data=data, allow_changes=allow_changes, **vars(given))
        else:
            run = api.start(config, folder, given, data=data)
        memory = peak_memory(device) if measures_memory else None
        record = _finished(record, run, measure(run), memory)
    except FAILURES as error:
        if isinstance(error, (DataError, DiskError, *BROKEN_GPU)) or (has_begun and isinstance(error, ConfigError)):
            raise
        record = replace(record, error=describe_failure(error))
        folder.mkdir(parents=True, exist_ok=True)
    write_json_atomically(folder / _FILE, asdict(record))
    return record


def _finished(record: Trial, run: Run, scores: dict[str, float], memory: int | None) -> Trial:
    batch = run.config.batch_size
    seconds = max(float(row["seconds"]) for row in run.metrics)
    curve, rank = [], {}
    for row in run.metrics:
        if "effective_rank" in row:
            rank = {"effective_rank": row["effective_rank"]}
        if "knn20" in row:
            curve.append({"images": row["step"] * batch, "seconds": row["seconds"], "knn20": row["knn20"], **rank})
    rate = round(record.steps * batch / seconds, 1)
    return replace(record, scores=scores, seconds=seconds, images_per_second=rate, peak_memory=memory, curve=curve)
