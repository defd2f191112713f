"""The `ssole` command: parse, call, print. Nothing imports this module."""

from __future__ import annotations

import difflib
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import tyro

from ssole import __version__
from ssole.config import ConfigError, PretrainConfig, apply_overrides, from_dict, load_recipe

if TYPE_CHECKING:
    from ssole.training.checkpoint import Run

USAGE = """usage: ssole COMMAND [OPTIONS]

  ssole pretrain    learn a representation from unlabeled images
  ssole eval RUN    judge a run beside raw pixels and the same network untrained
  ssole embed RUN   write the features of images to a file

ssole COMMAND --help tells more. With no options, ssole pretrain learns from the built-in digits-m images in minutes."""


@dataclass(frozen=True, kw_only=True)
class PretrainArgs:
    """Learn a representation from unlabeled images.

    Any setting of the recipe can be overridden. Ctrl-C saves a checkpoint; --resume RUN goes on from the newest.
    """

    recipe: str = "digits-m"
    """Shipped recipe or path of a YAML file; the settings below are then its own."""
    out: Path | None = None
    """Run folder; by default runs/RECIPE, numbered when that is taken."""
    resume: Path | None = None
    """Go on with this interrupted run. Its settings are kept, so nothing else may be given."""
    views: int | None = None
    """Views of each image in the first crop group."""
    config: Annotated[PretrainConfig, tyro.conf.arg(name="")] = field(default_factory=PretrainConfig)


@dataclass(frozen=True, kw_only=True)
class EvalArgs:
    """Judge a run: accuracy of weighted kNN and of a linear probe on frozen features, beside raw pixels and the same
    network untrained. Without labels, label-free figures."""

    run: Annotated[Path, "positional"]
    """Run folder, or its backbone.safetensors."""
    data: tuple[str, ...] = ()
    """Labelled images: a folder, parquet, or data set name. By default the data of the run."""
    test: tuple[str, ...] = ()
    """Images to test on; by default the data's own test split, else a held-out part."""
    protocol: tuple[Literal["knn", "linear"], ...] = ("knn", "linear")
    """What to measure."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Of the held-out part, where one must be made, and of the probe's validation split."""
    save: Path | None = None
    """Also write the result as JSON; by default RUN/evaluation.json when RUN is a folder."""


@dataclass(frozen=True, kw_only=True)
class EmbedArgs:
    """Write the features of images, their ids and their labels (if any) to one NumPy .npz file."""

    run: Annotated[Path, "positional"]
    """Run folder, or its backbone.safetensors."""
    data: tuple[str, ...] = ()
    """Images: a folder, parquet, or data set name. By default the data of the run."""
    out: Path = Path("embeddings.npz")
    """File to write."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


def pretrain(argv: Sequence[str]) -> int:
    from ssole import api

    args, given = _parse_pretrain(argv)
    if args.resume is not None:
        if given - {"--resume"}:
            raise ConfigError(
                f"--resume goes on with the run's own settings; leave out {', '.join(sorted(given - {'--resume'}))}"
            )
        run = api.resume(args.resume)
    else:
        config = args.config if args.views is None else apply_overrides(args.config, {"views": args.views})
        if "--epochs" in given and "--steps" not in given:
            config = apply_overrides(config, {"epochs": config.epochs})  # the recipe's own steps no longer hold
        stem = Path(args.recipe).stem
        run = api.start(config, args.out or api.free_folder(Path("runs"), stem))
    _print_finished(run)
    return 0


def _parse_pretrain(argv: Sequence[str]) -> tuple[PretrainArgs, set[str]]:
    """The arguments, with the recipe's values as defaults, and the names of the options that were given."""
    given = {word.split("=", 1)[0] for word in argv if word.startswith("--")}
    recipe = _option(argv, "--recipe") or "digits-m"
    config = from_dict(load_recipe(recipe))
    default = PretrainArgs(recipe=recipe, config=config)
    args = tyro.cli(PretrainArgs, default=default, args=list(argv), prog="ssole pretrain")
    return args, given


def _option(argv: Sequence[str], name: str) -> str | None:
    """The value of an option, before the full parser that depends on it exists."""
    for word, following in zip(argv, [*argv[1:], None], strict=True):
        if word == name:
            return following
        if word.startswith(f"{name}="):
            return word.split("=", 1)[1]
    return None


def evaluate(argv: Sequence[str]) -> int:
    from rich.console import Console

    from ssole.evaluation.protocols import evaluate as judge
    from ssole.views import make_views

    args = tyro.cli(EvalArgs, args=list(argv), prog="ssole eval")
    config = _run_config(args.run)
    result = judge(
        args.run,
        _spec(args.data) or _run_data(config, args.run),
        test=_spec(args.test),
        protocol=args.protocol,
        views=None if config is None else partial(make_views, recipe=config.augment, seed=args.seed, epoch=0),
        seed=args.seed,
        device=args.device,
    )
    Console().print(result.table())
    save = args.save or (args.run / "evaluation.json" if args.run.is_dir() else None)
    if save is not None:
        result.save(save)
        print(f"saved: {save}")
    return 0


def embed(argv: Sequence[str]) -> int:
    from ssole.evaluation.protocols import embed as compute

    args = tyro.cli(EmbedArgs, args=list(argv), prog="ssole embed")
    embeddings = compute(args.run, _spec(args.data) or _run_data(_run_config(args.run), args.run), device=args.device)
    path = embeddings.save(args.out)
    print(f"{len(embeddings.ids)} images, {embeddings.array.shape[1]} features each: {path}")
    return 0


def _run_config(path: Path) -> PretrainConfig | None:
    """The settings of a run folder; None for a weight file alone."""
    from ssole.training.checkpoint import Run

    return Run(path).config if (path / "config.yaml").is_file() else None


def _run_data(config: PretrainConfig | None, run: Path) -> Any:
    if config is None:
        raise ConfigError(f"{run} does not say which images to use: pass --data")
    return config.data


def _spec(words: tuple[str, ...]) -> Any:
    """What was given after --data or --test: nothing, one thing, or several files."""
    return None if not words else words[0] if len(words) == 1 else list(words)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {"pretrain": pretrain, "eval": evaluate, "embed": embed}


def _print_finished(run: Run) -> None:
    rows = [row for row in run.metrics if "loss" in row]
    if rows:
        last = rows[-1]
        print(
            f"{last['step']} steps in {last['seconds'] / 60:.1f} min, loss {last['loss']:.4f}, effective rank {last['effective_rank']:.0f}"
        )
    print(f"weights: {run.backbone_path}")
    print(f"judge them: ssole eval {run.path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 for a failed run, 2 for wrong input, 130 after Ctrl-C."""
    sys.exit(_main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(USAGE)
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"ssole {__version__}")
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        close = difflib.get_close_matches(argv[0], list(COMMANDS), n=1)
        print(
            f"error: no command {argv[0]!r}{f', did you mean {close[0]!r}?' if close else ''}\n\n{USAGE}",
            file=sys.stderr,
        )
        return 2
    try:
        return command(argv[1:])
    except ValueError as error:  # ConfigError and DataError among them: their messages say what to do
        print(f"error: {error}", file=sys.stderr)
        return 2
    except FloatingPointError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\n{error}" if str(error) else "\ninterrupted", file=sys.stderr)
        return 128 + int(getattr(error, "signal_number", 2))
