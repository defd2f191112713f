"""What a user calls: pretrain, resume."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from ssole.config import ConfigError, PretrainConfig, apply_overrides, from_dict, load_recipe
from ssole.data.base import ids_digest
from ssole.data.folder import FolderSource
from ssole.data.patterns import has_pattern
from ssole.data.remote import is_remote
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.data.torchvision_sets import KNOWN
from ssole.errors import DataError
from ssole.evaluation.protocols import knn_evaluator
from ssole.models.backbone import create_backbone
from ssole.runtime import resolve_device
from ssole.training.loop import train
from ssole.training.plan import make_plan
from ssole.training.run import LISTING, Run, alone_in, create_run, note_images, require_same_images

if TYPE_CHECKING:
    from ssole.data.base import Spec
    from ssole.training.monitor import Evaluator

DEFAULT_RECIPE = "digits-m"
_IN_MEMORY = "in memory: "  # begins `config.data` of a run whose images no name or path leads back to


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
        data: `digits-m`, a folder of images, a list of files, tar shards, parquet, NumPy files, a torchvision name such
            as `cifar10`, an array (N, H, W, C), or any object with a length and an index: all that
            :func:`ssole.data.sources.open_source` opens. By default what the recipe names. Labels are never needed, and
            never used by training.
        recipe: a shipped recipe's name or the path of a YAML file.
        out: the run folder, by default `runs/RECIPE`, numbered when that is taken. Nothing is ever overwritten.
        evaluators: {steps: f}; every so many steps, and at the end, f(backbone) gives figures for metrics.jsonl. By
            default, with the recipe's `knn_every`, a kNN accuracy on the data's own test split where it has labels.
        progress: show a progress bar.
        overrides: settings by name (`epochs=5`, `views=4`, `preset="aerial"`), dotted name (`**{"optim.lr": 1.0}`), or
            a group as a dict.

    Returns:
        The finished :class:`Run`.

    Raises:
        ConfigError, DataError: a setting or the data are not usable; the message says what to do.
        NonFiniteLossError: training diverged at the step it names.
        Interrupted: Ctrl-C or SIGTERM arrived, and a checkpoint was written; :func:`resume` goes on with it.
    """
    config = apply_overrides(from_dict(load_recipe(str(recipe))), overrides)
    folder = Path(out) if out is not None else free_folder(Path("runs"), Path(recipe).stem)
    return start(config, folder, data=data, evaluators=evaluators, progress=progress)


def start(
    config: PretrainConfig,
    out: Path,
    *,
    data: Spec | None = None,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
) -> Run:
    """Train a complete config in a new run folder. `data` replaces `config.data` where the images are not on disk."""
    resolve_device(config.device)  # the quick checks first: data may take a while to open
    _try_backbone(config)
    data = config.data if data is None else data
    config = dataclasses.replace(config, data=_describe(data))
    with _open(config, data, "train", progress) as store:
        make_plan(config, len(store))
        config = _measured(config, store)
        evaluators = _default_evaluators(config, store, progress) if evaluators is None else evaluators
        run = create_run(out, config)  # only now, so that what is refused leaves no folder behind
        note_images(run, len(store), ids_digest(store.source))
        if isinstance(store.source, FolderSource):
            store.source.keep_listing(run.path / LISTING)
        with alone_in(run):
            return train(run, store, evaluators=evaluators, progress=progress)


def resume(
    run: Run | str | PathLike[str],
    *,
    data: Spec | None = None,
    evaluators: Mapping[int, Evaluator] | None = None,
    progress: bool = True,
) -> Run:
    """Go on with an interrupted run from its newest checkpoint; a finished one is returned as it is.

    Args:
        run: the run, or its folder.
        data: the images, needed only when the run was started on images in memory.
        evaluators, progress: as for :func:`pretrain`.

    Raises:
        As :func:`pretrain`; and ConfigError when this is no run folder or none of its checkpoints can be read.
    """
    found = run if isinstance(run, Run) else Run(Path(run))
    config = found.config
    if found.finished:
        return found
    if data is None and in_memory(config):
        raise DataError(f"{found.path} was started on images in memory: pass them, ssole.resume(run, data=images)")
    images = config.data if data is None else data
    with _open(config, images, "train", progress, listing=found.path / LISTING) as store:
        require_same_images(found, len(store), ids_digest(store.source))
        evaluators = _default_evaluators(config, store, progress) if evaluators is None else evaluators
        with alone_in(found):
            return train(found, store, evaluators=evaluators, progress=progress)


def _measured(config: PretrainConfig, store: ImageStore) -> PretrainConfig:
    """With the mean and std of the images where the config leaves them open."""
    if config.augment.mean is not None:
        return config
    mean, std = store.channel_statistics()
    if min(std) == 0:
        raise DataError(
            f"channel {std.index(0)} of {store.source.name} has the same value everywhere, so it cannot be normalised: "
            "leave it out, or give augment.mean and augment.std"
        )
    return apply_overrides(config, {"augment.mean": mean, "augment.std": std})


def free_folder(parent: Path, name: str) -> Path:
    """`parent/name`, or with the first free number behind it."""
    path, number = parent / name, 2
    while path.exists():
        path, number = parent / f"{name}-{number}", number + 1
    return path


def _describe(data: Spec) -> str | tuple[str, ...]:
    """What stands for the images in a config. Paths become absolute, so that a run can be resumed from any folder."""
    if isinstance(data, (list, tuple)) and all(isinstance(part, (str, PathLike)) for part in data):
        return tuple(str(_describe(part)) for part in data)
    if isinstance(data, (str, PathLike)):
        text, path = str(data), Path(data).expanduser()
        is_name = text == "digits-m" or text.lower() in KNOWN or is_remote(text)
        return str(path.absolute()) if not is_name and (path.exists() or has_pattern(text)) else text
    return _IN_MEMORY + str(getattr(data, "name", f"{type(data).__name__} {getattr(data, 'shape', '')}".strip()))


def in_memory(config: PretrainConfig) -> bool:
    """Whether a run was started on images that its settings cannot lead back to."""
    return isinstance(config.data, str) and config.data.startswith(_IN_MEMORY)


def _open(config: PretrainConfig, data: Spec, split: Any, progress: bool, *, listing: Path | None = None) -> ImageStore:
    source = open_source(data, split=split, listing=listing)
    return ImageStore(
        source,
        shrink_to=config.augment.useful_size,
        channels=config.channels,
        max_unreadable=config.max_unreadable,
        cache=config.cache_gb != 0,
        cache_limit=None if config.cache_gb is None else int(config.cache_gb * 1e9),
        progress=progress,
    )


@torch.no_grad()
def _try_backbone(config: PretrainConfig) -> None:
    """Run the backbone once, so that what it does not take is told before there is a run folder."""
    name = config.model.backbone
    with torch.random.fork_rng(devices=[]):
        try:
            backbone = create_backbone(config.model, config.augment.image_size, channels=config.channels or 3).eval()
        except (TypeError, AssertionError, RuntimeError) as error:  # timm hands arguments on to the model's constructor
            raise ConfigError(f"model.backbone_args do not fit {name}: {error}") from None
        for crop in config.augment.crops:
            try:
                backbone(torch.zeros(1, config.channels or 3, crop.size, crop.size))
            except (AssertionError, RuntimeError, ValueError) as error:
                raise ConfigError(
                    f"{name} does not take images of {crop.size} x {crop.size} pixels: {error}. Choose another "
                    "augment.crops.N.size, or what the model needs in model.backbone_args (such as img_size)"
                ) from None


def _default_evaluators(config: PretrainConfig, store: ImageStore, progress: bool) -> Mapping[int, Evaluator]:
    """kNN accuracy on the data's own test split, if the recipe asks for it and the data have what it takes."""
    if config.knn_every is None:
        return {}
    augment = config.augment
    feeding: dict[str, Any] = {"image_size": augment.image_size, "mean": augment.mean, "std": augment.std}
    try:
        if in_memory(config):
            raise DataError("images in memory have no test split")
        test = _open(config, config.data, "test", progress)
        if test.ids == store.ids:  # a folder that is itself called test
            raise DataError("the test images are those of training")
        return {config.knn_every: knn_evaluator(store, test, precision=config.precision, **feeding)}
    except ValueError as error:
        if progress:
            print(f"no kNN accuracy while training: {error}", file=sys.stderr)
        return {}
