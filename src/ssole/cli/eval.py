"""`ssole eval`: accuracy of the features of runs and other networks, beside raw pixels and the untrained network."""

from __future__ import annotations

import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import tyro

from ssole import distributed
from ssole.cli.common import (
    DataWords,
    Device,
    OptionalFile,
    data_spec,
    require_file_to_write,
    run_config,
    run_data,
    show,
)
from ssole.config import ConfigError, PretrainConfig
from ssole.errors import distinct
from ssole.evaluation.models import is_run, name_of
from ssole.evaluation.results import LABEL_FREE, EvaluationResult
from ssole.evaluation.verdict import assess, last_rise
from ssole.files import free_path
from ssole.progress import output_console
from ssole.training.run import Run

if TYPE_CHECKING:
    from ssole.evaluation.features import Views

Models = Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="RUN", help_behavior_hint="(required)")]
Words = Annotated[tuple[str, ...], tyro.conf.arg(aliases=["--protocol"], metavar="NAME,NAME")]
Numbers = Annotated[tuple[float, ...] | None, tyro.conf.arg(metavar="X", help_behavior_hint="")]


@dataclass(frozen=True, kw_only=True)
class Eval:
    """Measure how good the features of a run are, beside raw pixels and other networks.

    Examples:
      ssole eval runs/mine
      ssole eval runs/mine --data photos/ --test photos-to-test-on/
      ssole eval runs/mine --protocols knn,few-shot,cluster
      ssole eval runs/mine --transfer cifar10 stl10 digits-m
      ssole eval runs/mine runs/other timm:resnet18 timm:resnet18=weights.pth --data photos/

    With labels: accuracy of weighted kNN and of a linear probe on the frozen features.
    Without labels, or with --protocols label-free: effective rank and other figures of the features, and a verdict.
    """

    run: Models
    """Run folder, its backbone.safetensors, timm:NAME[=FILE], torchvision:NAME[=FILE] or FILE.onnx; each is a row."""
    data: DataWords = ()
    """Labelled images, in any form that pretraining takes. By default, the data of the (first) run."""
    test: DataWords = ()
    """Images to test on. By default, the test split of the data, or else a held-out part of them."""
    transfer: DataWords = ()
    """Several labelled data sets: the linear probe on each of them, instead of --data and --protocols."""
    protocols: Words = ("knn", "linear")
    """What to measure, separated by commas: knn, linear, sgd, attentive, semi-supervised, few-shot, cluster, retrieval,
    robustness, label-free. All but label-free need labels."""
    device: Device = "auto"
    seed: int = 0
    """Seed of the held-out part, where one has to be made, and of the probe's validation split."""
    save: OptionalFile = None
    """Also write the result as JSON. By default, to RUN/evaluation.json (or transfer.json) for one run folder, unless
    its input is changed by the options below."""
    image_size: Annotated[int | None, tyro.conf.arg(metavar="PIXELS", help_behavior_hint="")] = None
    """Side of the input of networks that do not say it, such as some ONNX files."""
    mean: Numbers = None
    """Mean of each channel, for images in [0, 1], of networks that do not say it."""
    std: Numbers = None
    """Standard deviation of each channel, likewise."""

    def __call__(self) -> int:
        from ssole.evaluation.evaluate import evaluate as measure
        from ssole.evaluation.transfer import transfer as measure_transfer

        if not self.run:
            raise ConfigError("give a RUN to evaluate, such as a run folder or timm:resnet18")
        if self.save is not None:
            require_file_to_write(self.save)
        models = dict(zip(distinct([name_of(one) for one in self.run], self.run), self.run, strict=True))
        alone = len(self.run) == 1 and is_run(self.run[0])
        run = next((Path(one) for one in models.values() if is_run(one)), None)
        config = None if run is None else run_config(run)
        given: Any = self.run[0] if alone else models
        names = ("image_size", "mean", "std")
        changed = {name: value for name in names if (value := getattr(self, name)) is not None}
        views = None
        if config is not None and is_run(self.run[0]):
            views = _views(config, self.seed, changed if alone else {})  # several models are not changed
        if self.transfer:
            measured = partial(measure_transfer, given, self.transfer)
        else:
            measured = partial(
                measure,
                given,
                data_spec(self.data) or run_data(config, run or self.run[0]),
                test=data_spec(self.test),
                protocol=[name for words in self.protocols for name in words.replace(",", " ").split()],
                views=views,
            )
        result = measured(seed=self.seed, device=self.device, progress=not distributed.rank(), **changed)
        if distributed.rank():
            return 0
        try:  # saved first: printing fails where a pipe was closed
            # a run's folder gets no figures of another preprocessing than its own
            saved = _save(result, self, run if alone and not changed else None)
        finally:
            output_console().print(result.table())
            _print_verdicts(result, {"trained": self.run[0]} if alone else models)
        if saved is not None:
            show(f"saved: {saved}")
        return 0


def _views(config: PretrainConfig, seed: int, changed: Mapping[str, Any]) -> Views:
    """Views by a run's recipe, adapted to its preprocessing with some `changed` settings."""
    from ssole.evaluation.features import adapted_views
    from ssole.evaluation.label_free import VIEWS
    from ssole.evaluation.preprocessing import Preprocessing
    from ssole.views import make_views

    own = Preprocessing.from_config(config)
    views = partial(make_views, recipe=config.augment.main_views(VIEWS), seed=seed, epoch=0)
    return adapted_views(views, own, replace(own, **changed))


def _print_verdicts(result: EvaluationResult, models: Mapping[str, str]) -> None:
    """Print a line with the verdict on each network whose label-free figures were measured."""
    for row, model in models.items():
        figures = {name: score.value for name, score in result.rows.get(row, {}).items() if name in LABEL_FREE}
        if figures:
            width = result.details[row]["rankme"][0]["features"]
            rise = last_rise(Run(Path(model)).metrics) if Path(model).is_dir() else 0.0
            verdict = assess(figures, width, result.rows[row]["rankme"].n, rise)
            assert verdict is not None  # there is RankMe
            show(f"verdict on {name_of(model)}: {verdict.sentence}")


def _save(result: EvaluationResult, args: Eval, run: Path | None) -> Path | None:
    """Write the result to --save, else to the folder of the run. Returns its path, or None if it was not written."""
    name = "transfer.json" if args.transfer else "evaluation.json"
    save = args.save or (run / name if run is not None and run.is_dir() else None)
    if save is None:
        return None
    try:
        if args.save is None:
            _keep_earlier(save, result)
        return result.save(save)
    except OSError as error:
        if args.save is not None:
            raise
        why = f"{save} could not be written ({error.strerror})"
        warnings.warn(f"{why}: --save FILE saves the result elsewhere", stacklevel=1)
        return None


def _keep_earlier(path: Path, new: EvaluationResult) -> None:
    """Keep an earlier result under a new name if the new one lacks some of its figures, or is of other images."""
    try:
        earlier = EvaluationResult.load(path)
    except (OSError, ValueError):  # there is none, or a damaged one
        return
    figures = {(row, name) for row, scores in new.rows.items() for name in scores}
    lost = any((row, name) not in figures for row, scores in earlier.rows.items() for name in scores)
    if lost or (earlier.train, earlier.test) != (new.train, new.test):
        kept = earlier.save(free_path(path.with_suffix(""), path.suffix))
        warnings.warn(f"the earlier result has other figures or images: kept as {kept}", stacklevel=1)
