"""`ssole pretrain`: features learned from unlabeled images. Every setting of a recipe is an option."""

from __future__ import annotations

import argparse
import inspect
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

import tyro

from ssole import api, distributed
from ssole.cli.common import Changes, OptionalFolder, OptionalNumber, show
from ssole.config import DEFAULT_RECIPE, LOSS_CONFIGS, PRESETS, ConfigError, PretrainConfig, load, recipe_names, to_dict
from ssole.config.hints import hint_at_setting
from ssole.doctor.suggest import ANY_VIEWS, channel_overrides
from ssole.errors import quoted
from ssole.progress import duration
from ssole.training.run import Run


@dataclass(frozen=True, kw_only=True)
class PretrainArgs:
    """Options of `ssole pretrain`; every field of `config` is one."""

    recipe: str = DEFAULT_RECIPE
    """A recipe's name, or the path of a YAML file. By default, one is made to suit --data, --budget and the machine."""
    out: OptionalFolder = None
    """Run folder. By default runs/RECIPE, with a number if that exists."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN", help_behavior_hint="")] = None
    """Continue this interrupted run. It keeps its settings: with it go only --allow-changes, --data and --eval-data."""
    allow_changes: Changes = ()
    """With --resume: kinds of change since the start to accept. By default, every change is an error that shows it."""
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
    before = _process_seconds() if list(argv) == sys.argv[2:] else 0.0  # else Python code calls this
    begin = time.monotonic() - before
    args, given = parse_options(argv)
    if args.resume is not None:
        if others := sorted(given - {"--resume", "--data", "--eval-data", "--allow-changes"}):
            longer = "; ssole extend trains a finished run for longer" if {"--epochs", "--steps"} & {*others} else ""
            raise ConfigError(f"--resume keeps the run's own settings; leave out {', '.join(others)}{longer}")
        run = Run(args.resume)
        if run.finished and not distributed.launch().rank:
            show(f"{run.path} has finished already: there is nothing to resume. ssole extend trains it for longer.")
        data = args.config.data if "--data" in given else None
        eval_data = args.config.eval_data if "--eval-data" in given else None
        print_finished(api.resume(run, data=data, eval_data=eval_data, allow_changes=args.allow_changes))
        return 0
    if args.allow_changes:
        raise ConfigError("--allow-changes goes with --resume RUN: a new run has nothing to compare with")
    from ssole.doctor.choose import choose

    settings = _settings(args, given)
    recipe = args.recipe if "--recipe" in given else None
    name, config = choose(settings.get("data"), recipe, settings, spent=time.monotonic() - begin)
    out = api.new_folder(args.out, name)
    print_finished(api.start(config, out, spent=time.monotonic() - begin))
    return 0


def _settings(args: PretrainArgs, given: set[str]) -> dict[str, Any]:
    """Values of the settings that were given, by dotted name."""
    settings: dict[str, Any] = {}
    config: Any = to_dict(args.config)
    for option in given:
        *groups, name = option.removeprefix("--").replace("-", "_").split(".")
        node = config
        for group in groups:
            node = node[int(group) if isinstance(node, list) else group]
        name = name if name in node else name.removeprefix("no_")  # tyro's --no-FLAG
        if name in node:
            settings[".".join([*groups, name])] = node[name]
    others = {"views": args.views, "knn_every": args.eval_every, "preset": args.preset}
    return settings | {name: value for name, value in others.items() if value is not None}


def parse_options(argv: Sequence[str]) -> tuple[PretrainArgs, set[str]]:
    """Parsed options, with the values of the recipe as defaults, and the names of those given."""
    if argv and not argv[0].startswith("-"):
        raise ConfigError(f"got {argv[0]!r} before any option: images go with --data, as in --data {quoted(argv[0])}")
    given = {word.split("=", 1)[0].replace("_", "-") for word in argv if word.startswith("--")}
    # the full parser can only be made once these are known
    first = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    for name in ("--recipe", "--preset", "--loss.name", "--channels"):
        first.add_argument(name, nargs="?")
    first.add_argument("--data", nargs="*")
    known = vars(first.parse_known_args(argv)[0])
    recipe, preset, channels = known["recipe"] or DEFAULT_RECIPE, known["preset"], known["channels"] or ""
    # The defaults decide which options there are. They must accept all settings of a recipe that is only chosen later,
    # from the data: other channels than those of digits-m, and settings for larger views than its own.
    overrides: dict[str, Any] = {"preset": preset, "loss.name": known["loss.name"]}
    if not given & {"--recipe", "--preset"} and channels.isascii() and channels.isdecimal():
        overrides |= channel_overrides(int(channels))
    if "--recipe" not in given and known["data"] not in (None, [DEFAULT_RECIPE]) and not {"-h", "--help"} & {*argv}:
        overrides |= ANY_VIEWS
    config = load(recipe, **{name: value for name, value in overrides.items() if value is not None})
    for option in (one for one in given if one.startswith("--loss.")):
        name = option.removeprefix("--loss.").removeprefix("no-").replace("-", "_")
        if name not in vars(config.loss) and any(name in loss.__dataclass_fields__ for loss in LOSS_CONFIGS.values()):
            raise ConfigError(f"{config.loss.name} has no setting {option}.{hint_at_setting(f'loss.{name}')}")
    about = (
        f"{inspect.getdoc(pretrain)}\n\nRecipes: {', '.join(recipe_names())}.\n\n"
        f"Every setting of a recipe can be overridden. The defaults below are those of {recipe}."
    )
    default = PretrainArgs(recipe=recipe, preset=preset, config=config)
    prints = not distributed.launch().rank  # all processes have the same options
    args = tyro.cli(
        PretrainArgs, default=default, args=list(argv), prog="ssole pretrain", description=about, console_outputs=prints
    )
    return args, given


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
    show(f"evaluate them: ssole eval {quoted(run.path)}")


def _process_seconds() -> float:
    """Seconds since this process was started; 0.0 on systems that do not tell."""
    try:
        ticks = int(Path("/proc/self/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19])
        now = float(Path("/proc/uptime").read_text(encoding="utf-8").split()[0])
        return max(0.0, now - ticks / os.sysconf("SC_CLK_TCK"))
    except (OSError, ValueError, IndexError):
        return 0.0
