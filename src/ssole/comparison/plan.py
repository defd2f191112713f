"""Plan of a comparison: the search of each arm's settings, the steps of its runs, and what they will cost.

Every arm has the same number of trials and the same number of steps in all. The search takes one or two rungs of
successive halving, and its draws are equal for all arms. Trial 0 is the arm's own settings. Later trials multiply its
learning rate and weight decay by factors that are the same for every arm, and draw the one or two settings of its loss
that `ssole.config.losses` names. Draws are the points of a scrambled Halton sequence, which few trials already spread
over the whole of each range. A step's time is measured before anything is trained.

Sources: Bergstra and Bengio, "Random search for hyper-parameter optimization" (JMLR 2012), section 4 on sequences like
Halton's; Jamieson and Talwalkar, "Non-stochastic best arm identification and hyperparameter optimization" (2016).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, NamedTuple

from ssole.comparison.request import PLAN_FILE, START_ANEW, Arm, Request
from ssole.comparison.trial import BROKEN_GPU, FAILURES, describe_failure
from ssole.config import ConfigError, PretrainConfig, apply_overrides
from ssole.data.store import ImageStore
from ssole.files import read_json, reading, write_json_atomically
from ssole.progress import duration
from ssole.runtime import resolve_device
from ssole.training.dry_run import TRIAL_SECONDS, step_seconds
from ssole.training.feed import make_plan
from ssole.training.initial import initial_weights

LR_FACTORS = (0.25, 4.0)
WEIGHT_DECAY_FACTORS = (0.1, 10.0)
KEPT = 3
"""Reduction factor of successive halving: one in KEPT trials goes on to the next rung, with KEPT times the steps."""
_ASSUMED_STEP_SECONDS = 0.1
"""Assumed seconds of a step until it is measured, to tell whether a run in a budget is long enough to compile."""
_MEASURING_SHARE = 0.2
"""Share of a budget of time that measuring a step may take."""


class Rung(NamedTuple):
    """Stage of the search."""

    trials: int
    """Number of trials that take part."""
    share: float
    """Their steps, as a share of a whole run's."""


def rungs(trials: int) -> tuple[Rung, ...]:
    """Rungs of a search: all trials at a ninth of the steps, and the best third of them at a third.

    Up to three trials have one rung, at a third. Each run is a whole one, with its learning rate falling to the end.
    """
    if trials == 0:
        return ()
    last = math.ceil(trials / KEPT)
    return (Rung(trials, 1 / KEPT**2), Rung(last, 1 / KEPT)) if last > 1 else (Rung(trials, 1 / KEPT),)


def draw_settings(arm: Arm, trial: int) -> dict[str, float]:
    """Settings of a trial by dotted name, as overrides of the arm's; none for trial 0.

    If the learning rate drawn is below the arm's final one, the final one is lowered to it. If the final one is pinned,
    it is the learning rate of the trial.
    """
    if trial == 0:
        return {}
    from scipy.stats import qmc

    loss = {f"loss.{name}": ends for name, ends in arm.config.loss.search.items()}
    shares = qmc.Halton(4, seed=0).random(trial)[-1].tolist()  # in [0, 1), for the two of `optim` and up to two more
    optim = {
        "optim.lr": (arm.config.optim.lr, LR_FACTORS),
        "optim.weight_decay": (arm.config.optim.weight_decay, WEIGHT_DECAY_FACTORS),
    }
    ranges = {name: (value * low, value * high) for name, (value, (low, high)) in optim.items()} | loss
    drawn = {
        name: float(f"{low * (high / low) ** share:.3g}")  # on a logarithmic scale
        for (name, (low, high)), share in zip(ranges.items(), shares, strict=False)
        if name not in arm.pinned and low > 0
    }
    final = arm.config.optim.final_lr
    if drawn.get("optim.lr", math.inf) < final:
        drawn |= {"optim.lr": final} if "optim.final_lr" in arm.pinned else {"optim.final_lr": drawn["optim.lr"]}
    return drawn


def settings_text(settings: Mapping[str, Any]) -> str:
    """Settings of a trial in a line."""
    return ", ".join(f"{name} {value}" for name, value in settings.items()) or "its own settings"


def ranked(scores: Mapping[int, float]) -> list[int]:
    """Trials by their scores, best first; the earlier trial wins a tie."""
    return sorted(scores, key=lambda trial: (-scores[trial], trial))


@dataclass(frozen=True, kw_only=True)
class ArmPlan:
    """Steps of the runs of an arm."""

    steps: int
    """Steps of a whole run. Runs of the search have a share of them."""
    step_seconds: float
    """Seconds of a step, without those of compiling."""
    error: str | None = None
    """Why the arm cannot take a single step; None if it can."""

    def search_steps(self, trials: int) -> int:
        """Steps of the whole search."""
        return sum(rung.trials * steps_for_share(self.steps, rung.share) for rung in rungs(trials))


def shortened(config: PretrainConfig, steps: int, whole: int) -> PretrainConfig:
    """Config of a run of `steps` steps in place of `whole`, whose warmup has the same share of the run."""
    warmup = round(config.optim.warmup_steps * min(1.0, steps / whole))
    return apply_overrides(config, {"steps": steps, "optim.warmup_steps": warmup})


def steps_for_share(steps: int, share: float) -> int:
    """Steps of a run that has a share of the budget."""
    return max(1, round(steps * share))


def measure_plan(
    folder: Path,
    request: Request,
    store: ImageStore,
    smallest: int,
    check: Callable[[Mapping[str, ArmPlan]], None] = lambda plan: None,
) -> dict[str, ArmPlan]:
    """Plan by arm, measured at the first call for a folder and read from it later.

    So runs keep their number of steps, however busy the machine is when a comparison goes on. An arm that fails is
    planned with its error, unless all of them fail. `smallest` is the number of images in the smallest training set of
    a run, which must fill a batch. A new plan at which `check` raises an error is not written, so that the folder is
    free for another budget.
    """
    path = folder / PLAN_FILE
    if path.is_file():
        with reading(path, START_ANEW):
            saved = read_json(path)
            return {arm.name: ArmPlan(**saved[arm.name]) for arm in request.arms}
    limit = TRIAL_SECONDS
    if request.budget.unit == "seconds":
        limit = min(limit, _MEASURING_SHARE * request.budget.amount)
    plan, failures = {}, []
    for arm in request.arms:
        try:
            make_plan(arm.config, smallest)  # raises an error for too few images
            initial_weights(arm.config)  # and this for weights that are not there, or do not fit
            device, steps = resolve_device(arm.config.device), _steps(request, arm, _ASSUMED_STEP_SECONDS)
            seconds = step_seconds(arm.config, store, device, loss=arm.module, steps=steps, limit=limit)
        except FAILURES as error:
            if isinstance(error, BROKEN_GPU):
                raise
            failures.append(error)
            plan[arm.name] = ArmPlan(steps=0, step_seconds=0.0, error=describe_failure(error))
        else:
            plan[arm.name] = ArmPlan(steps=_steps(request, arm, seconds), step_seconds=seconds)
    if len(failures) == len(plan):  # so the cause is probably in what they share
        raise failures[0]
    check(plan)
    write_json_atomically(path, {name: asdict(one) for name, one in plan.items()})
    return plan


def require_time(request: Request, plan: Mapping[str, ArmPlan]) -> None:
    """Raise a ConfigError if a budget of time is too short for a step of the shortest run."""
    slowest = max(plan, key=lambda name: plan[name].step_seconds)
    share = min([1.0, *(rung.share for rung in rungs(request.search))])
    least = plan[slowest].step_seconds / share
    if request.budget.unit == "seconds" and request.budget.amount < least:
        part = "" if share == 1 else f", and the shortest runs of the search have 1/{round(1 / share)} of the budget"
        raise ConfigError(
            f"a budget of {request.budget.amount:g} s is too small: a step of {slowest} takes "
            f"{plan[slowest].step_seconds:.2g} s here{part}. Give at least {math.ceil(least)}s (--budget), "
            "and far more to learn anything"
        )


def _steps(request: Request, arm: Arm, step_seconds: float) -> int:
    """Number of steps of each whole run of an arm, if a step takes `step_seconds`."""
    config = arm.config
    return request.budget.steps(batch_size=config.batch_size, views=config.augment.views, step_seconds=step_seconds)


def cost_lines(request: Request, plan: Mapping[str, ArmPlan]) -> Iterator[str]:
    """Lines of text about the cost of a comparison: steps and time of each arm."""
    runs = "run" if request.seeds == 1 else "runs"
    total = 0.0
    for arm in request.arms:
        one = plan[arm.name]
        if one.error is not None:
            yield f"{arm.name}: left out, {one.error}"
            continue
        search, final = one.search_steps(request.search), request.seeds * one.steps
        total += (seconds := (search + final) * one.step_seconds)
        searched = f"{search} steps of search, " if search else ""
        yield f"{arm.name}: {searched}{request.seeds} {runs} of {one.steps} steps, {duration(seconds)}"
    yield f"in all about {duration(total)} of training, and the time for evaluating each run"


def short_search_notes(request: Request, plan: Mapping[str, ArmPlan], images: int) -> Iterator[str]:
    """A note for each arm whose first rung of the search sees less than one epoch."""
    stages = rungs(request.search)
    for arm in request.arms if stages else ():
        steps = steps_for_share(plan[arm.name].steps, stages[0].share)
        seen = steps * arm.config.batch_size
        if plan[arm.name].error is None and seen < images:
            yield (
                f"{arm.name}: the search begins with runs of {steps} steps, {seen:,} of {images:,} images, less than "
                "one epoch. Its choice may favour a quick start; a larger budget would tell."
            )
