"""Pretraining and resuming: `pretrain`, `resume`."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Collection, Mapping
from contextlib import ExitStack
from functools import partial
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn

from ssole import distributed
from ssole.config import ConfigError, CustomConfig, PretrainConfig
from ssole.data.describe import canonical, describe, images_of_run, is_in_memory, why_not_reopened
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.evaluation.online import default_evaluators
from ssole.files import free_path
from ssole.models.custom import custom_settings, is_custom, missing_module_error
from ssole.progress import say
from ssole.runtime import environment, one_thread, resolve_device
from ssole.training.checkpoint import checkpoint_steps
from ssole.training.dry_run import step_seconds
from ssole.training.feed import check_shares, make_plan
from ssole.training.images import IMAGES_FILE, keep_or_compare_images
from ssole.training.initial import initial_weights
from ssole.training.loop import Given, train
from ssole.training.monitor import Evaluator, figures_of, require_same_evaluators
from ssole.training.needs import require_memory
from ssole.training.run import Change, Run, lock_run, new_run, require_free, require_same_recipe
from ssole.training.settings import agreed_config, eval_data_to_open, with_measurements

if TYPE_CHECKING:
    from ssole.data.base import Source, Spec

_NOTHING = Given()


@one_thread()
def pretrain(
    data: Spec | None = None,
    *,
    recipe: str | PathLike[str] | None = None,
    out: str | PathLike[str] | None = None,
    loss: nn.Module | Mapping[str, Any] | None = None,
    backbone: nn.Module | None = None,
    init: Run | str | PathLike[str] | None = None,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
    **overrides: Any,
) -> Run:
    """Learn a representation from unlabeled images. Long because all arguments are explained here.

        run = ssole.pretrain("photos/", recipe="photos", out="runs/photos", batch_size=64, **{"optim.lr": 1.0})
        model = ssole.load(run)

    Args:
        data: `digits-m`, a folder of images, a list of files, tar shards, parquet, NumPy files, a torchvision name such
            as `cifar10`, an array (N, H, W, C), or any object with a length and an index: all that
            :func:`ssole.data.sources.open_source` opens. The default is the recipe's own. Labels are
            seen by evaluators and losses with `needs_labels` alone.
        recipe: name of a shipped recipe, or path of a YAML file. Without, :func:`ssole.doctor.choose.choose` makes one.
        out: run folder; by default `runs/RECIPE`, with a number if that exists. Nothing is ever overwritten.
        loss: a module of your own that maps embeddings (B, V, D), V views of B images, to a scalar or to named terms
            (:func:`ssole.losses.base.named_terms`); or settings of the recipe's loss, `loss={"name": "simclr"}`. A
            copy of the module is used; its weights are trained, and saved in the checkpoints.
        backbone: a module of your own in place of timm's, which returns features (B, F) of normalised images
            (:class:`ssole.models.custom.CustomBackbone`). It keeps its weights: a copy is trained from them, and
            `ssole.load(run, backbone=module)` gives it the trained ones.
        init: weights to start from: a run, a `.safetensors` or `.pth` file, or "timm" (:mod:`ssole.training.initial`).
        evaluators: {steps: f}; every so many steps, and at the end, f(backbone) gives figures for metrics.jsonl. If
            the recipe sets `knn_every` or `eval_data`, the default is kNN accuracy on the test split of the data.
        progress: show a progress bar.
        overrides: settings by name (`epochs=5`, `views=4`, `preset="aerial"`), dotted name (`**{"optim.lr": 1.0}`), or
            a group as a dict.

    Returns:
        The finished :class:`Run`. Of the threads of a process, one trains at a time, and the others wait.

    Raises:
        ConfigError, DataError: a setting or the data are not usable; the message says what to do.
        NonFiniteLossError: training diverged, at lower learning rates too; the message names the step.
        CollapseError: the embeddings of all images have been nearly the same for long.
        Interrupted: Ctrl-C, SIGTERM or SIGHUP arrived, and a checkpoint was written; :func:`resume` continues from it.
    """
    begin, module = time.monotonic(), loss if isinstance(loss, nn.Module) else None
    if loss is not None:
        if not isinstance(loss, (nn.Module, Mapping)):
            raise ConfigError(f'loss is a module, or settings such as loss={{"name": "simclr"}}, got {loss!r}')
        if module is not None and (lost := [name for name in overrides if name.startswith("loss.")]):
            raise ConfigError(f"{lost[0]} has no effect on {type(module).__name__}, a loss module: set it up in Python")
        overrides["loss"] = loss if module is None else {"name": "custom", "module": type(module).__qualname__}
    given = Given(loss=module, backbone=backbone, evaluators=evaluators, progress=progress)
    if backbone is not None:
        overrides |= custom_settings(backbone)
    if init is not None:
        overrides["init"] = str(init.path if isinstance(init, Run) else init)
    from ssole.doctor.choose import choose  # here, because the doctor would make `import ssole` slower

    name, config = choose(data, recipe, overrides)
    return start(config, new_folder(out, name), given, data=data, spent=time.monotonic() - begin)


@one_thread()
def start(
    config: PretrainConfig, out: Path, given: Given = _NOTHING, *, data: Spec | None = None, spent: float = 0.0
) -> Run:
    """Pretraining of a complete config in a new run folder; `data` and the modules given replace the config's.

    `spent` is how many seconds of a budget of time have passed already.
    """
    begin = time.monotonic() - spent
    if _is_restart(out):
        if data is None and why_not_reopened(config.data) is not None:
            data = config.data  # which the command names
        return resume(Run(out), data=data, eval_data=config.eval_data, **vars(given))
    with distributed.processes(config.process_timeout):
        config = agreed_config(config, given.progress)
        device = distributed.own_device(resolve_device(config.device))  # quick checks first: data may take a while
        world = distributed.world_size()  # 1 in what the first process does by itself
        distributed.on_rank_0(lambda: require_free(out))
        distributed.on_rank_0(lambda: check_shares(config, world))
        distributed.on_rank_0(lambda: require_memory(config, device))
        initial = initial_weights(config, given.backbone, progress=given.progress)
        data, eval_data = config.data if data is None else data, config.eval_data
        described = None if eval_data is None else describe(eval_data)
        config = dataclasses.replace(config, data=describe(data), eval_data=described)
        data = canonical(data)
        with open_store(config, data, given.progress) as store, ExitStack() as stack:
            trial = partial(step_seconds, store=store, device=device, loss=given.loss, backbone=given.backbone)
            config = with_measurements(config, store, begin, trial)
            plan = make_plan(config, len(store))
            facts = given.facts()  # before the default ones take their place
            given = _with_evaluators(given, config, data, eval_data, store)

            def make() -> str:
                run = stack.enter_context(new_run(out, config, facts))
                keep_or_compare_images(run, store.source)
                return str(run.path)

            run = Run(Path(distributed.on_rank_0(make)))  # after all checks, so that a refused run leaves no folder
            return train(run, store, plan, device, given, spent=time.monotonic() - begin, initial=initial)


def _is_restart(out: Path) -> bool:
    """Whether a folder holds a run of this command, which torchrun has started again.

    torchrun's job name tells. Without a name, the restart count does; it is 0 on a machine where no process failed.
    """
    place = distributed.launch()
    if not place.may_restart or not (out / "config.yaml").is_file():
        return False
    before = Run(out).environment
    again = place.restarts > 0 if place.job is None else before.get("torchrun") == place.job
    return again and before.get("command") == environment()["command"]


def _with_evaluators(
    given: Given, config: PretrainConfig, data: Spec, eval_data: Spec | None, store: ImageStore
) -> Given:
    """The same with evaluators that all processes call: those given, in the first process only, or the default ones."""
    require_same_evaluators(given.evaluators)
    evaluators: Mapping[int, Evaluator]
    if given.evaluators is not None:
        evaluators = {every: partial(figures_of, evaluator) for every, evaluator in given.evaluators.items()}
    else:
        options = _store_options(config, given.progress and not distributed.rank())
        with distributed.first_on_each_node():
            evaluators = default_evaluators(config, data, eval_data, store, **options)
    return dataclasses.replace(given, evaluators=evaluators)


def resume(
    run: Run | str | PathLike[str],
    *,
    data: Spec | None = None,
    eval_data: Spec | None = None,
    loss: nn.Module | None = None,
    backbone: nn.Module | None = None,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
    allow_changes: Collection[Change] = (),
) -> Run:
    """Continue an interrupted run from its newest checkpoint; a finished run is returned unchanged.

    Args:
        run: the run, or its folder.
        data, eval_data: the images, needed only if the run was started on images in memory, or behind URLs: a run
            folder may be untrusted, and is not reason enough to fetch anything.
        loss, backbone: the modules, needed only if the run was started with such.
        evaluators, progress: as for :func:`pretrain`.
        allow_changes: what may have changed since the run was started, and is a warning then: "images" (their contents,
            sizes or times; names and order must be the same), "settings" (config.yaml, and those of a loss module) and
            "version" (of ssole).

    Raises:
        As :func:`pretrain`; also ConfigError if this is no run folder, no checkpoint can be read, or settings or
        version changed, and DataError if the images did.
    """
    found = run if isinstance(run, Run) else Run(Path(run))
    _ = found.config  # an error for a folder that is no run
    if found.finished:
        return found
    given = Given(loss=loss, backbone=backbone, evaluators=evaluators, progress=progress)
    return continue_run(found, given, data=data, eval_data=eval_data, allow_changes=allow_changes)


def continue_run(
    found: Run,
    given: Given,
    *,
    data: Spec | None,
    eval_data: Spec | None,
    allow_changes: Collection[Change],
    prepare: Callable[[int], None] = lambda steps_per_epoch: None,
) -> Run:
    """Training of an unfinished run from its newest checkpoint, as :func:`resume` describes it.

    `prepare` is called with the number of steps of an epoch, after these checks and while the run is locked.
    """
    config = found.config
    if data is None:
        call = f"ssole.{'extend' if found.finished else 'resume'}(run, data=images)"
        how = f"pass them, {call}" if is_in_memory(config.data) else f"pass --data, or {call}"
        data = images_of_run(config.data, found.path, how)
    eval_data = eval_data_to_open(config, found.path, eval_data) if given.evaluators is None else None
    if given.evaluators is None and (steps := found.environment.get("evaluators")):
        known = f"{found.path} was measured every {str(steps).strip('[]')} steps"
        say(f"{known} by functions that are not given now: pass evaluators", enabled=given.progress)
    if is_custom(config.model) and given.backbone is None:
        raise missing_module_error(config.model)
    now = type(given.loss).__qualname__
    if given.loss is not None and config.loss != CustomConfig(module=now):
        before = getattr(config.loss, "module", config.loss.name)
        raise ConfigError(f"{found.path} began with the loss {before!r}, and the one given is {now!r}")
    with one_thread(), distributed.processes(config.process_timeout):
        distributed.on_rank_0(lambda: require_same_recipe(found, given.facts(), allowed=allow_changes))
        device = distributed.own_device(resolve_device(config.device))
        distributed.on_rank_0(lambda: require_memory(config, device))
        with open_store(config, data, given.progress) as store, ExitStack() as stack:
            changed = "images" in allow_changes
            distributed.on_rank_0(lambda: stack.enter_context(lock_run(found)))
            distributed.on_rank_0(lambda: _check_images(found, store.source, allowed=changed))
            given = _with_evaluators(given, config, data, eval_data, store)
            plan = make_plan(config, len(store))
            # A kill may have come before the initial weights were written.
            begun = distributed.on_rank_0(lambda: bool(checkpoint_steps(found)))
            initial = None if begun else initial_weights(config, given.backbone, progress=given.progress)
            prepared = partial(prepare, plan.steps_per_epoch)
            return train(found, store, plan, device, given, initial=initial, prepare=prepared)


def _check_images(run: Run, source: Source, *, allowed: bool) -> None:
    """Raise a DataError unless the images are those that the run has begun on.

    A run that was killed before its first record gets one now. A run of an older version has none and is not checked.
    """
    if (run.path / IMAGES_FILE).is_file() or not any(checkpoint_steps(run)):
        keep_or_compare_images(run, source, allowed=allowed)


def new_folder(out: str | PathLike[str] | None, name: str) -> Path:
    """Path `out`; without one, `runs/NAME`, or `runs/NAME-N` with the first free number N from 2 on.

    Raises:
        ConfigError: there is no `out`, and torchrun may restart the processes, which could not find the run again.
    """
    if out is not None:
        return Path(out)
    if distributed.launch().may_restart:
        raise ConfigError("after a restart, torchrun could not find the run again without its folder: add --out FOLDER")
    return free_path(Path("runs", name))


def open_store(config: PretrainConfig, data: Spec, progress: bool) -> ImageStore:
    """Store of the training images, decoded no larger than crops can use. Processes of one machine share its cache."""
    options = _store_options(config, progress)
    with distributed.first_on_each_node():
        source = open_source(data)
        if config.budget is None:
            make_plan(config, len(source))  # its errors come before all images are decoded
        return ImageStore(source, shrink_to=config.augment.useful_size, channels=config.channels, **options)


def _store_options(config: PretrainConfig, progress: bool) -> dict[str, Any]:
    return {
        "processes": distributed.launch().local_world_size,
        "max_unreadable": config.max_unreadable,
        "cache": config.cache_gb != 0,
        "cache_limit": None if config.cache_gb is None else int(config.cache_gb * 1e9),
        "progress": progress,
    }
