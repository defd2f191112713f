"""`ssole compare`: methods side by side, in the same loop."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro

from ssole.cli.common import (
    DataWords,
    OptionalFolder,
    OptionalName,
    OptionalNumber,
    TrialChanges,
    data_spec,
    show,
)
from ssole.config import ConfigError
from ssole.errors import one_line
from ssole.progress import output_console


@dataclass(frozen=True, kw_only=True)
class Compare:
    """Compare methods in the same loop: same images, views, backbone, budget and search of settings.

    Examples:
      ssole compare --methods ssole,simclr,vicreg --budget 600steps --out runs/losses
      ssole compare --methods ssole,simclr --data photos/ --recipe photos --budget 30m --seeds 3
      ssole compare experiments/lambda.yaml
      ssole compare --resume runs/losses
    """

    experiment: Annotated[
        tyro.conf.Positional[Path | None], tyro.conf.arg(metavar="[EXPERIMENT.yaml]", help_behavior_hint="")
    ] = None
    """A file with these options and, perhaps, arms of your own; see docs/compare.md. Options override it."""
    methods: Annotated[str | None, tyro.conf.arg(metavar="A,B,...", help_behavior_hint="")] = None
    """Losses to compare, with commas between them: ssole,simclr,vicreg. Or some of the arms of the experiment."""
    data: DataWords = ()
    """Labelled images, in any form that pretraining takes. By default, the recipe's own."""
    test: DataWords = ()
    """Images to test on. By default, the test split of the data, or else a held-out part of them."""
    recipe: OptionalName = None
    """Settings that all methods share: a recipe's name, or a YAML file. By default, those that suit the data."""
    budget: Annotated[str | None, tyro.conf.arg(metavar="BUDGET", help_behavior_hint="")] = None
    """What each run may take: 10m, 2000steps, 300kimages or 1Mviews. By default, the steps of the recipe."""
    seeds: OptionalNumber = None
    """Runs of each method. By default 3."""
    search: OptionalNumber = None
    """Settings that are tried for each method on a part of the training images; 0 for none. By default 6."""
    images: OptionalNumber = None
    """Training images to use, an evenly spaced sample, and one more of each class it lacks. By default, all."""
    projector: Literal["recipe", "published"] | None = None
    """`recipe`: all methods have the recipe's projector (the default). `published`: each has that of its paper."""
    set: Annotated[tuple[str, ...], tyro.conf.arg(metavar="SETTING=VALUE", help_behavior_hint="")] = ()
    """Settings for all methods, such as batch_size=64 optim.lr=0.02."""
    out: OptionalFolder = None
    """Folder of the comparison, by default runs/compare-RECIPE. With it, the same command goes on where it stopped."""
    resume: OptionalFolder = None
    """Continue the comparison in this folder. It keeps its settings: with it goes only --allow-changes."""
    allow_changes: TrialChanges = ()
    """Kinds of change since the start to accept. By default, every change is an error that shows it."""

    def __call__(self) -> int:
        from ssole.comparison.compare import compare as run
        from ssole.comparison.compare import resume_comparison

        if self.resume is not None:
            if self != Compare(resume=self.resume, allow_changes=self.allow_changes):
                raise ConfigError("--resume keeps the settings of the comparison; leave the other options out")
            result = resume_comparison(self.resume, allow_changes=self.allow_changes)
        else:
            result = run(**_arguments(self))
        output_console().print(result.table())
        show(f"saved: {result.path / 'comparison.json'}")
        return 0 if result.best is not None else 1


def _arguments(args: Compare) -> dict[str, Any]:
    """Arguments of :func:`ssole.compare` from the experiment and the options, which override it."""
    from ssole.comparison.compare import check_settings, read_experiment

    found = {} if args.experiment is None else read_experiment(args.experiment)
    given = {
        name: getattr(args, name)
        for name in ("recipe", "budget", "seeds", "search", "images", "projector", "out", "allow_changes")
    }
    given |= {"data": data_spec(args.data), "test": data_spec(args.test)}
    given["methods"] = None if args.methods is None else _methods(args.methods, found.get("methods"))
    found |= {name: value for name, value in given.items() if value is not None}
    if "methods" not in found:
        raise ConfigError("name the methods to compare: --methods ssole,simclr, or an experiment.yaml")
    if args.experiment is not None and args.out is None:
        found["out"] = Path("runs") / args.experiment.stem
    settings = dict(map(_setting, args.set))
    check_settings(settings)
    return found | settings


def _methods(text: str, arms: Any) -> list[str] | dict[str, Any]:
    """Losses by name, or those arms of an experiment that have the names."""
    names = [name.strip() for name in text.split(",")]
    if not isinstance(arms, dict) or not any(name in arms for name in names):
        return names
    if missing := [name for name in names if name not in arms]:
        raise ConfigError(f"the experiment has no arm {missing[0]!r}; there are: {', '.join(arms)}")
    return {name: arms[name] for name in names}


def _setting(text: str) -> tuple[str, Any]:
    import yaml

    name, equals, value = text.partition("=")
    if not equals:
        raise ConfigError(f"--set takes SETTING=VALUE, such as optim.lr=0.02, got {text!r}")
    try:
        return name, yaml.safe_load(value)
    except yaml.YAMLError as error:
        raise ConfigError(f"--set {text}: the value is not valid YAML ({one_line(error)})") from None
