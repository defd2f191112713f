"""`ssole pretrain`: learning of features from unlabeled images. Every setting of a recipe is an option."""

from __future__ import annotations

import argparse
import inspect
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ssole import api, distributed
from ssole.cli.common import Changes, OptionalFolder, OptionalNumber, data_spec, show
from ssole.config import DEFAULT_RECIPE, PRESETS, ConfigError, PretrainConfig, apply_overrides, load, recipe_names
from ssole.doctor.suggest import Suggestion, channel_overrides
from ssole.progress import duration
from ssole.runtime import process_seconds
from ssole.training.run import Run
from ssole.training.settings import require_named

_DEFAULT_DATA = (DEFAULT_RECIPE, (DEFAULT_RECIPE,))


@dataclass(frozen=True, kw_only=True)
class PretrainArgs:
    """Options of `ssole pretrain`; every field of `config` is one."""

    recipe: str = DEFAULT_RECIPE
    """A recipe's name, or the path of a YAML file. Without, one that suits --data, --budget and the machine is made."""
    out: OptionalFolder = None
    """Run folder. By default runs/RECIPE, with a number if that exists."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """Continue this interrupted run. It keeps its settings: with it go only --allow-changes, --data and --eval-data."""
    allow_changes: Changes = ()
    """With --resume: what may have changed since the run was started. Without, a change is an error that shows it."""
    views: OptionalNumber = None
    """Views of each image; short for --augment.crops.0.count."""
    eval_every: OptionalNumber = None
    """Steps between measurements on --eval-data, or on the test split of --data; another name for --knn-every."""
    preset: Annotated[str | None, tyro.conf.arg(metavar="|".join(PRESETS), help_behavior_hint="")] = None
    """Usual augmentation for this kind of images. Replaces the recipe's augment settings except its crops."""
    config: Annotated[PretrainConfig, tyro.conf.arg(name=""), tyro.conf.AvoidSubcommands] = field(
        default_factory=PretrainConfig
    )


def pretrain(argv: Sequence[str]) -> int:
    """Learn features from unlabeled images.

    Examples:
      ssole pretrain                                        the built-in digits-m images, in minutes
      ssole pretrain --data photos/ --budget 2h             your own images, with settings that suit them
      ssole pretrain --data photos/ --recipe photos         the same with given settings
      ssole pretrain --resume runs/digits-m                 continue an interrupted run
    """
    before = process_seconds() if list(argv) == sys.argv[2:] else 0.0  # else Python code calls this
    begin = time.monotonic() - before
    args, given = parse_options(argv)
    if args.resume is not None:
        if others := sorted(given - {"--resume", "--data", "--eval-data", "--allow-changes"}):
            raise ConfigError(f"--resume keeps the run's own settings; leave out {', '.join(others)}")
        run = Run(args.resume)
        if run.finished and not distributed.launch().rank:
            show(f"{run.path} has finished already: there is nothing to resume.")
        data = args.config.data if "--data" in given else None
        eval_data = args.config.eval_data if "--eval-data" in given else None
        print_finished(api.resume(run, data=data, eval_data=eval_data, allow_changes=args.allow_changes))
        return 0
    if args.allow_changes:
        raise ConfigError("--allow-changes goes with --resume RUN: a new run has nothing to compare with")
    if "--data" in given and "--recipe" not in given and args.config.data not in _DEFAULT_DATA:
        args, given = parse_options(argv, _choice(args.config, given, time.monotonic() - begin))
    config, short = args.config, {"views": args.views, "knn_every": args.eval_every}
    overrides = {name: value for name, value in short.items() if value is not None}
    # given once more, they clear the recipe's own
    overrides |= {name: getattr(config, name) for name in ("budget", "epochs", "steps") if f"--{name}" in given}
    config = apply_overrides(config, overrides)
    require_named(config, {name.removeprefix("--").replace("-", "_") for name in given})
    out = api.new_folder(args.out, Path(args.recipe).stem)
    print_finished(api.start(config, out, spent=time.monotonic() - begin))
    return 0


def _choice(config: PretrainConfig, given: set[str], spent: float) -> Suggestion:
    """Recipe and settings for the data, budget, device and channels of a config, and the options given beside them."""
    from ssole.doctor.choose import suggest_for, with_given

    words = (config.data,) if isinstance(config.data, str) else config.data
    facts: Any = {"budget": config.budget, "device": config.device, "channels": config.channels}
    choice = suggest_for(data_spec(words), spent=spent, **facts)
    return with_given(choice, {name.removeprefix("--").replace("-", "_") for name in given})


def parse_options(argv: Sequence[str], choice: Suggestion | None = None) -> tuple[PretrainArgs, set[str]]:
    """Parsed options, with the values of the recipe or of a choice as defaults, and the names of those given."""
    given = {word.split("=", 1)[0].replace("_", "-") for word in argv if word.startswith("--")}
    # the full parser can only be made once these are known
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--recipe", "--preset", "--loss.name", "--channels"):
        first.add_argument(name, nargs="?")
    known = vars(first.parse_known_args(argv)[0])
    recipe, preset = known["recipe"] or DEFAULT_RECIPE, known["preset"]
    base = load(recipe)
    if choice is not None:
        recipe, base = choice.recipe, apply_overrides(choice.config, {"reasons": choice.reasons})
    # These decide which options there are.
    shaping: dict[str, Any] = {"preset": preset, "loss.name": known["loss.name"]}
    channels = known["channels"] or ""
    if not given & {"--recipe", "--preset"} and choice is None and channels.isascii() and channels.isdecimal():
        shaping |= channel_overrides(int(channels))  # else the views of digits-m, which are of photographs, refuse them
    config = apply_overrides(base, {name: value for name, value in shaping.items() if value is not None})
    about = (
        f"{inspect.getdoc(pretrain)}\n\nRecipes: {', '.join(recipe_names())}.\n\n"
        f"Every setting of a recipe can be overridden. The defaults below are those of {recipe}."
    )
    default = PretrainArgs(recipe=recipe, preset=preset, config=config)
    return tyro.cli(PretrainArgs, default=default, args=list(argv), prog="ssole pretrain", description=about), given


def print_finished(run: Run) -> None:
    """Print the result of a finished run, and how to evaluate it, in the first of many processes."""
    if distributed.launch().rank:
        return
    shown = ("loss", "seconds", "effective_rank")
    rows = [row for row in run.metrics if all(isinstance(row.get(name), (int, float)) for name in shown)]
    if rows:
        last = rows[-1]
        took, rank = duration(last["seconds"]), last["effective_rank"]
        show(f"{last['step']} steps in {took}, loss {last['loss']:.4f}, effective rank {rank:.0f}")
    if unreadable := run.unreadable:
        first = unreadable[0]
        show(f"{len(unreadable)} unreadable images were left out, such as {first['id']}: {first['reason']}")
        show(f"all of them: {run.path / 'unreadable.jsonl'}")
    show(f"weights: {run.backbone_path}")
    show(f"evaluate them: ssole eval {run.path}")
