"""What a user calls: pretrain, resume."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssole.config import ConfigError, PretrainConfig, apply_overrides, from_dict, load_recipe
from ssole.errors import DataError

if TYPE_CHECKING:
    from ssole.data.sources import Spec
    from ssole.training.checkpoint import Run
    from ssole.training.monitor import Evaluator

DEFAULT_RECIPE = "digits-m"


def pretrain(
    data: Spec | None = None,
    *,
    recipe: str | PathLike[str] = DEFAULT_RECIPE,
    out: str | PathLike[str] | None = None,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
    **overrides: Any,
) -> Run:
    """Learn a representation from unlabeled images.

        run = ssole.pretrain("photos/", recipe="imagenet100", out="runs/photos", batch_size=64, **{"optim.lr": 1.0})
        model = ssole.load(run)

    Args:
        data: `digits-m`, a folder of images, Hugging Face style parquet (a file, several, or a folder), a torchvision name
            such as `cifar10`, a uint8 array (N, H, W, C), or any :class:`ssole.data.sources.Source`. By default what the
            recipe names. Labels are never needed, and never seen by training.
        recipe: a shipped recipe's name or the path of a YAML file.
        out: the run folder, by default `runs/RECIPE`, numbered when that is taken.
        evaluators: {steps: f}; every so many steps f(backbone) gives figures for metrics.jsonl. By default, with the
            recipe's `knn_every`, a kNN accuracy on the data's own test split where it has labels.
        progress: show a progress bar.
        overrides: settings by name (`epochs=5`, `views=4`) or dotted name (`**{"optim.lr": 1.0}`), or a group as a dict.

    Returns:
        The finished :class:`Run`.

    Raises:
        ConfigError, DataError: a setting or the data are not usable; the message says what to do.
        NonFiniteLossError: training diverged at the step it names.
    """
    if data is not None:
        overrides["data"] = _data_name(data)
    config = apply_overrides(from_dict(load_recipe(str(recipe))), overrides)
    source = config.data if data is None else data
    return start(
        config,
        out or free_folder(Path("runs"), Path(recipe).stem),
        data=source,
        evaluators=evaluators,
        progress=progress,
    )


def start(
    config: PretrainConfig,
    out: str | PathLike[str],
    *,
    data: Spec | None = None,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
) -> Run:
    """Train a complete config in a new run folder. `data` replaces `config.data` where the images are not on disk."""
    from ssole.training.checkpoint import create_run
    from ssole.training.loop import make_plan, resolve_device, train

    resolve_device(config.device)  # before the data, which may take a while
    store = _open_store(config, data, progress)
    make_plan(config, len(store))
    _try_model(config)
    run = create_run(Path(out), config)  # only now, so that a refused config leaves no folder behind
    return train(run, store, evaluators=_evaluators(config, evaluators, progress), progress=progress)


def resume(
    run: str | PathLike[str],
    *,
    data: Spec | None = None,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
) -> Run:
    """Go on with an interrupted run from its newest checkpoint; a finished one is returned as it is.

    `data` is needed only when the run was started on images in memory.
    """
    from ssole.training.checkpoint import Run
    from ssole.training.loop import train

    found = Run(Path(run))
    config = found.config
    if found.finished:
        return found
    store = _open_store(config, data, progress)
    return train(found, store, evaluators=_evaluators(config, evaluators, progress), progress=progress)


def free_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or with the first free number behind it."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path


def _data_name(data: Spec) -> Any:
    if isinstance(data, (str, PathLike)):
        return str(data)
    name = getattr(data, "name", None)
    if isinstance(name, str):
        return name
    if isinstance(data, (list, tuple)):
        return [str(part) for part in data]
    return "array"


def _open_store(config: PretrainConfig, data: Spec | None, progress: bool) -> Any:
    from ssole.data.loader import ImageStore
    from ssole.data.sources import open_source

    return ImageStore(open_source(config.data if data is None else data, split="train"), progress=progress)


def _try_model(config: PretrainConfig) -> None:
    """Build the backbone once, so that an unknown name or argument is told before a run folder exists."""
    from ssole.models.backbone import create_backbone

    try:
        create_backbone(config.model, config.augment.image_size)
    except TypeError as error:  # timm passes unknown arguments on to the model's constructor
        raise ConfigError(f"model.backbone_args do not fit {config.model.backbone}: {error}") from None


def _evaluators(
    config: PretrainConfig, given: Mapping[int, Evaluator] | None, progress: bool
) -> Mapping[int, Evaluator] | None:
    if given is not None or config.knn_every is None:
        return given
    from ssole.data.loader import ImageStore
    from ssole.data.sources import open_source
    from ssole.evaluation.protocols import knn_evaluator

    try:
        splits = [ImageStore(open_source(config.data, split=split), progress=progress) for split in ("train", "test")]  # type: ignore[arg-type]
    except DataError:
        return None
    if any(store.labels is None for store in splits):
        return None
    augment = config.augment
    evaluator = knn_evaluator(
        *splits, image_size=augment.image_size, mean=augment.mean, std=augment.std, precision=config.precision
    )
    return {config.knn_every: evaluator}
