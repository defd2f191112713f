"""`tune`: learning rate, loss weights and strength of the augmentation, chosen without labels.

Trials are short runs with settings from :mod:`ssole.comparison.plan`; trial 0 is the recipe itself. Each is scored by
the label-free figure that followed accuracy best in the experiment behind :mod:`ssole.evaluation.verdict`, on the
same views for all: those of the recipe. Labels are never read.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any

import numpy as np

from ssole import __version__, api
from ssole.comparison.plan import ArmPlan, draw_settings, measure_plan, ranked, settings_text, shortened
from ssole.comparison.request import Arm, Request, save_request
from ssole.comparison.trial import Trial, other_version_error, resumable, run_trial, score_run
from ssole.config import ConfigError, PretrainConfig, ViewRecipe, apply_overrides, to_dict
from ssole.config.budget import Budget
from ssole.data.base import Source, Spec, SubsetSource, evenly_spaced
from ssole.data.describe import canonical, describe
from ssole.data.store import ImageStore
from ssole.errors import quoted
from ssole.evaluation.label_free import VIEWS
from ssole.evaluation.results import METRICS
from ssole.evaluation.verdict import CORRELATION
from ssole.files import write_yaml_atomically
from ssole.progress import say
from ssole.training.feed import make_plan
from ssole.training.images import keep_or_compare_images
from ssole.training.initial import with_absolute_init
from ssole.training.run import Change, Run
from ssole.training.settings import say_reasons, with_statistics
from ssole.views import make_views

FIGURE = max(CORRELATION, key=lambda name: abs(CORRELATION[name]))
"""Figure that trials are scored by."""
STRENGTHS = (0.3, 2.0)
"""Range of the factor of the augmentation's strength, on a logarithmic scale."""
_ARM = "tune"
_TRAINING_SHARE = 0.85  # share of the budget for training; the rest is for measuring
_MOST_SCORED = 2000


@dataclass(frozen=True, kw_only=True)
class Tuning:
    """Outcome of a tuning."""

    recipe: Path
    """Recipe with the chosen settings, for `ssole pretrain --recipe`."""
    trials: list[Trial]
    """Records of the trials; their scores have the label-free figures."""
    chosen: int
    """Number of the best trial; 0 is the recipe as it was."""


def tune(
    data: Spec | None = None,
    *,
    recipe: str | PathLike[str] | None = None,
    budget: str = "30m",
    trials: int = 8,
    out: str | PathLike[str] | None = None,
    progress: bool = True,
    allow_changes: Collection[Change] = (),
    **overrides: Any,
) -> Tuning:
    """Choose learning rate, weight decay, loss settings and strength of the augmentation without labels.

    It finds little of what labels would, 7 % of the gain in four searches; :func:`ssole.compare` takes labels.

        found = ssole.tune("photos/", budget="30m", out="runs/tuned")
        run = ssole.pretrain("photos/", recipe=found.recipe)

    Args:
        data: images, as for :func:`ssole.pretrain`; by default the recipe's own. Labels are not used.
        recipe, overrides: settings to begin with, as for :func:`ssole.pretrain`: by default, those that suit the data.
        budget, trials: a time (`30m`), `2000steps`, `300kimages` for all trials, which are equally long; and how many.
        out: folder for the runs and for the recipe, `tuned.yaml`; by default a new one, `runs/tune-RECIPE`. The same
            call with it goes on after an interruption: trials that have finished are not repeated.
        progress, allow_changes: as for :func:`ssole.compare`.

    Raises:
        ConfigError, DataError: unusable settings or data, changed data, another tuning in `out`; or all trials failed.
    """
    from ssole.doctor.choose import choose  # here, because the doctor would make `import ssole` slower

    if not isinstance(trials, int) or trials < 2:
        raise ConfigError(f"tuning compares 2 trials or more, got {trials!r}")
    name, config = choose(data, recipe, overrides)
    say_reasons(config, enabled=progress)
    base = with_absolute_init(replace(config, knn_every=None, eval_data=None, budget=None))
    data = canonical(base.data if data is None else data)
    # without reasons, which may name the memory that was free
    arm = Arm(name=_ARM, config=replace(base, reasons=()))
    request = Request(arms=(arm,), data=describe(data), test=None, budget=Budget.parse(budget), seeds=1, search=trials)
    folder = api.new_folder(out, f"tune-{name}")
    with resumable(folder, f"the same command and --out {quoted(folder)}"):
        save_request(folder, request, what="tuning")
        with api.open_store(base, data, progress) as store:
            config = with_statistics(base, store)
            steps = _steps(folder, request, config, store)
            config = replace(shortened(config, steps, make_plan(config, len(store)).total), reasons=())
            images = store.source
        records = _run_trials(folder, config, data, images, trials, progress, allow_changes)
    return _outcome(folder, replace(base, data=describe(data)), records)


def _outcome(folder: Path, base: PretrainConfig, records: list[Trial]) -> Tuning:
    """Write the recipe with the settings of the best trial, and return the outcome."""
    sign = 1 if CORRELATION[FIGURE] > 0 else -1
    scores = {trial: sign * one.scores[FIGURE] for trial, one in enumerate(records) if FIGURE in one.scores}
    if not scores:
        raise ConfigError(f"all trials failed, the last one by {records[-1].error}")
    chosen, path = ranked(scores)[0], folder / "tuned.yaml"
    settings = records[chosen].settings
    why = f"{settings_text(settings)}: of {len(records)} trials, this had the best {METRICS[FIGURE]} (ssole tune)"
    write_yaml_atomically(path, to_dict(apply_overrides(base, {**settings, "reasons": (*base.reasons, why)})))
    return Tuning(recipe=path, trials=records, chosen=chosen)


def _run_trials(
    folder: Path,
    config: PretrainConfig,
    data: Spec,
    images: Source,
    trials: int,
    progress: bool,
    allow_changes: Collection[Change],
) -> list[Trial]:
    """Records of all trials; those that have finished are only read."""
    records: list[Trial] = []
    arm = Arm(name=_ARM, config=config)
    views = partial(make_views, recipe=config.augment.main_views(VIEWS), seed=config.seed, epoch=0)
    sample = SubsetSource(images, np.asarray(evenly_spaced(len(images), _MOST_SCORED)))
    sample.labels = None
    measure = partial(score_run, data=sample, protocol="label-free", views=views, progress=False)

    def check() -> None:
        """Raise an error if images or version of ssole differ from those of earlier trials, unless that is allowed."""
        keep_or_compare_images(Run(folder), images, allowed="images" in allow_changes)
        done = [Run(folder / f"trial-{trial}") for trial, record in enumerate(records) if record.error is None]
        for version in {run.environment.get("ssole", __version__) for run in done} - {__version__}:
            if "version" not in allow_changes:
                raise other_version_error(folder, version, __version__)

    for trial in range(trials):
        settings = draw_settings(arm, trial) | stronger(config.augment, _strength(trial))
        say(f"trial {trial} of {trials}, {config.steps} steps: {settings_text(settings)}", enabled=progress)
        record = run_trial(
            folder / f"trial-{trial}",
            apply_overrides(config, settings),
            data,
            measure,
            settings=settings,
            progress=progress,
            check=check,
            allow_changes=allow_changes,
        )
        outcome = record.error or f"{METRICS[FIGURE]} {record.scores[FIGURE]:.4g}"
        say(f"trial {trial}: {outcome}", enabled=progress)
        records.append(record)
    return records


def stronger(recipe: ViewRecipe, factor: float) -> dict[str, Any]:
    """Settings that make the augmentation stronger by a factor, by dotted name; none for a factor of 1.

    The part of the image that the main crops may cut away, and the ranges of brightness, contrast, saturation and hue,
    are multiplied by it, within their limits.
    """
    if factor == 1:
        return {}
    low, high = recipe.crops[0].scale
    found: dict[str, Any] = {"augment.crops.0.scale": [_rounded(min(high, max(0.05, 1 - (1 - low) * factor))), high]}
    for name, most in (("brightness", 1.0), ("contrast", 1.0), ("saturation", 1.0), ("hue", 0.5)):
        if (value := getattr(recipe, name)) > 0:
            found[f"augment.{name}"] = _rounded(min(max(most, value), value * factor))
    return found


def _strength(trial: int) -> float:
    """Factor of a trial: 1 for trial 0, later points of a low-discrepancy sequence over the range."""
    if trial == 0:
        return 1.0
    share = sum((trial >> bit & 1) / 2 ** (bit + 1) for bit in range(trial.bit_length()))  # van der Corput, base 2
    return float(STRENGTHS[0] * (STRENGTHS[1] / STRENGTHS[0]) ** share)


def _steps(folder: Path, request: Request, config: PretrainConfig, store: ImageStore) -> int:
    """Steps of a trial, decided once for a folder."""
    budget = replace(request.budget, amount=request.budget.amount / request.search)
    if budget.unit == "seconds":
        budget = replace(budget, amount=_TRAINING_SHARE * budget.amount)
    one = replace(request, budget=budget, arms=(replace(request.arms[0], config=config),))

    def check(plan: Mapping[str, ArmPlan]) -> None:
        seconds = plan[_ARM].step_seconds
        if budget.unit == "seconds" and seconds > budget.amount:
            raise ConfigError(
                f"a budget of {request.budget.amount:g} s is too small for {request.search} trials of steps that take "
                f"{seconds:.2g} s each"
            )

    return measure_plan(folder, one, store, len(store), check)[_ARM].steps


def _rounded(value: float) -> float:
    return float(f"{value:.3g}")
