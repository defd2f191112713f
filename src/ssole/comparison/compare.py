"""`compare`: methods in the same loop, on the same images and views; and its arguments from a YAML file."""

from __future__ import annotations

import inspect
from collections.abc import Collection, Mapping
from dataclasses import replace
from functools import partial
from os import PathLike
from pathlib import Path
from typing import Any, Literal

from ssole import api
from ssole.comparison.images import Images, open_images, require_neighbours
from ssole.comparison.plan import measure_plan, require_time
from ssole.comparison.request import (
    Methods,
    Request,
    check_numbers,
    load_request,
    make_arms,
    refuse_settings_of_runs,
    save_request,
)
from ssole.comparison.result import Comparison
from ssole.comparison.runner import Runner
from ssole.comparison.trial import resumable
from ssole.config import ConfigError
from ssole.config.budget import Budget
from ssole.config.recipes import read_mapping
from ssole.data.base import Spec
from ssole.data.describe import canonical, describe, why_not_reopened
from ssole.errors import did_you_mean, quoted
from ssole.training.feed import make_plan
from ssole.training.run import Change
from ssole.training.settings import say_reasons, with_statistics


def compare(
    methods: Methods,
    data: Spec | None = None,
    *,
    recipe: str | PathLike[str] | None = None,
    budget: str | None = None,
    seeds: int = 3,
    search: int = 6,
    images: int | None = None,
    test: Spec | None = None,
    projector: Literal["recipe", "published"] = "recipe",
    out: str | PathLike[str] | None = None,
    progress: bool = True,
    allow_changes: Collection[Change] = (),
    **overrides: Any,
) -> Comparison:
    """Compare methods under equal conditions: images, views, their order, backbone, optimizer, budget and search.

    Long because all arguments are explained here.

        result = ssole.compare(["ssole", "simclr", "vicreg"], budget="600steps", out="runs/losses")

    Each arm's settings are searched on a part of the training images (:mod:`ssole.comparison.plan`). Then it is
    trained on all, once a seed, and scored on the test images. Ctrl-C loses nothing: the same call with `out` goes on.

    Args:
        methods: names of losses; or arms by name, each with settings as in `overrides`, or a loss module of your own.
        data, recipe, overrides: labelled images and the settings that all arms share, as for :func:`ssole.pretrain`.
        budget: what each run may take: a time (`10m`), `2000steps`, `300kimages`, `1.2Mviews`; default the recipe's.
        seeds, search: runs of each arm; and settings that its search tries, its own among them (0: no search).
        images: size of an evenly spaced sample of the training images, plus one of each class it lacks; default all.
        test: test images; by default the test split of the data, else a stratified fifth that is held out.
        projector: `recipe` gives all arms the recipe's projector, `published` each the one published for its loss.
        out: folder for the result, its plots and the run folders; by default a new one, `runs/compare-RECIPE`.
        progress, allow_changes: as for :func:`ssole.resume`; with progress, it also says what it will cost.

    Raises:
        ConfigError, DataError: unusable settings or data, a folder of another comparison, or images that changed.
    """
    from ssole.doctor.choose import choose  # here, because the doctor would make `import ssole` slower

    check_numbers(seeds=seeds, search=search, images=images)  # before the data are opened
    # lengths are allowed, as the default of the budget; and knn_every, which recipes set
    refuse_settings_of_runs(overrides, "the settings", allowed=("epochs", "steps", "budget", "knn_every"))
    name, config = choose(data, recipe, overrides)
    say_reasons(config, enabled=progress)
    base = replace(config, knn_every=None, eval_data=None, reasons=())
    arms = make_arms(methods, replace(base, budget=None), projector=projector)
    given = None if budget is None else Budget.parse(budget)
    data = canonical(base.data if data is None else data)
    opened = open_images(data, test if test is None else canonical(test), most=images)
    request = Request(
        arms=arms,
        data=describe(data),
        test=test if test is None else describe(test),
        budget=given or Budget.parse(base.budget or f"{make_plan(base, len(opened.train)).total}steps"),
        seeds=seeds,
        search=search,
        images=images,
    )
    return _run(request, api.new_folder(out, f"compare-{name}"), data, opened, progress, allow_changes)


def resume_comparison(
    folder: str | PathLike[str], *, progress: bool = True, allow_changes: Collection[Change] = ()
) -> Comparison:
    """Continue an interrupted comparison of data that its folder names, or read a finished one.

    Raises:
        ConfigError: not the folder of a comparison, or one with losses or images from Python; else as `compare`.
    """
    folder = Path(folder)
    request = load_request(folder)
    if (reason := why_not_reopened(request.data) or why_not_reopened(request.test)) is not None:
        raise ConfigError(f"{folder} compares on {reason}: call ssole.compare again with the same arguments")
    images = open_images(request.data, request.test, most=request.images)
    return _run(request, folder, request.data, images, progress, allow_changes)


def _run(
    request: Request, folder: Path, data: Spec, images: Images, progress: bool, allow_changes: Collection[Change]
) -> Comparison:
    has_code = any(arm.module is not None for arm in request.arms)
    if has_code or why_not_reopened(request.data) or why_not_reopened(request.test):
        command = f"the same call of ssole.compare with out={str(folder)!r}"
    else:
        command = f"ssole compare --resume {quoted(folder)}"
    smallest = images.search_train if request.search else images.train
    require_neighbours(smallest)
    with resumable(folder, command):
        save_request(folder, request)
        with api.open_store(request.arms[0].config, images.train, progress) as store:
            arms = [replace(arm, config=with_statistics(arm.config, store)) for arm in request.arms]
            measured, check = replace(request, arms=tuple(arms)), partial(require_time, request)
            plan = measure_plan(folder, measured, store, len(smallest), check)
        return Runner(
            request=request,
            arms=arms,
            plan=plan,
            folder=folder,
            data=data,
            images=images,
            progress=progress,
            allow_changes=allow_changes,
        ).run()


_OPTIONS = inspect.signature(compare).parameters.keys() - {"overrides"}
_KEYS = _OPTIONS - {"out", "progress", "allow_changes"} | {"set"}


def read_experiment(path: Path) -> dict[str, Any]:
    """Arguments of :func:`ssole.compare` from a file.

        recipe: cifar10-cpu             a name, or a file's path from this file or from the working directory
        budget: 600steps
        search: 0
        set: {optim.lr: 0.02}           settings for all arms
        methods:                        a list of losses, or arms by name with their settings
          lambda 1: {loss.name: ssole, loss.high_rank_weight: 1.0}
          lambda 2: {loss.name: ssole, loss.high_rank_weight: 2.0}

    A file that is missing, is no YAML mapping, or has a key that does not exist is a ConfigError.
    """
    if not path.is_file():
        raise ConfigError(
            f"there is no experiment {path}: give a YAML file, or --methods with commas between them (ssole,simclr)"
        )
    values = read_mapping(path)
    for key in values:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            raise ConfigError(f"{path}: unknown key {key!r}.{hint} There are: {', '.join(sorted(_KEYS))}")
    settings = values.pop("set", {})
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: set must be a mapping of settings, got {settings!r}")
    settings = {str(name): value for name, value in settings.items()}  # YAML has names that are numbers
    check_settings(settings)
    if (beside := path.parent / str(values.get("recipe", ""))).is_file():  # a recipe from this file
        values["recipe"] = beside
    return {**settings, **values}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise a ConfigError if a setting for all arms is an option of the comparison itself."""
    if options := _OPTIONS & settings.keys():
        name = min(options)
        raise ConfigError(f"{name} is no setting of the arms but an option: give it as `{name}`, or by --{name}")
