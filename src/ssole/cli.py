"""The `ssole` command: parse, call, print. Nothing imports this module."""

from __future__ import annotations

import difflib
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
import tyro

from ssole import __version__, api
from ssole.config import (
    PRESETS,
    ConfigError,
    PretrainConfig,
    ViewRecipe,
    apply_overrides,
    from_dict,
    load_recipe,
    recipe_names,
    view_preset,
)
from ssole.data.base import evenly_spaced
from ssole.data.decode import decode
from ssole.data.folder import image_suffixes
from ssole.data.sources import is_in_memory, open_source
from ssole.files import write_atomically
from ssole.models.load import weights_path
from ssole.progress import duration
from ssole.training.run import Run

USAGE = """usage: ssole COMMAND [OPTIONS]

  ssole doctor DATA   look at images before hours are spent: damage, copies, what a run would cost
  ssole pretrain      learn a representation from unlabeled images
  ssole eval RUN      judge a run beside raw pixels and the same network untrained
  ssole embed RUN     write the features of images to a file
  ssole views DATA    draw what a recipe makes of images

ssole COMMAND --help tells more. With no options, ssole pretrain learns from the built-in digits-m images in minutes."""

PRETRAIN = """Learn a representation from unlabeled images:
  ssole pretrain                                        the built-in digits-m images, in minutes
  ssole pretrain --data photos/ --recipe imagenet100    your own images
  ssole pretrain --resume runs/digits-m                 go on after an interruption

Recipes: {recipes}.

Every setting of a recipe can be overridden. The defaults below are those of {recipe}."""


@dataclass(frozen=True, kw_only=True)
class PretrainArgs:
    recipe: str = api.DEFAULT_RECIPE
    """A recipe's name, or the path of a YAML file."""
    out: Annotated[Path | None, tyro.conf.arg(metavar="FOLDER")] = None
    """Run folder; by default runs/RECIPE, numbered when that is taken."""
    resume: Annotated[Path | None, tyro.conf.arg(metavar="RUN")] = None
    """Go on with this interrupted run. Its settings are kept, so nothing else may be given."""
    views: Annotated[int | None, tyro.conf.arg(metavar="INT")] = None
    """Views of each image; short for --augment.crops.0.count."""
    preset: Annotated[str | None, tyro.conf.arg(metavar="|".join(PRESETS))] = None
    """How views of this kind of images are usually made, in place of the recipe's augment settings but its crops."""
    config: Annotated[PretrainConfig, tyro.conf.arg(name="")] = field(default_factory=PretrainConfig)


@dataclass(frozen=True, kw_only=True)
class EvalArgs:
    """Judge a run: accuracy of weighted kNN and of a linear probe on frozen features, beside raw pixels and the same
    network untrained. Without labels, label-free figures."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder, or its backbone.safetensors."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATA")] = ()
    """Labelled images, as for pretraining. By default the data of the run."""
    test: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATA")] = ()
    """Images to test on; by default the data's own test split, else a held-out part."""
    protocol: tuple[Literal["knn", "linear", "label_free"], ...] = ("knn", "linear")
    """What to measure."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""
    seed: int = 0
    """Of the held-out part, where one must be made, and of the probe's validation split."""
    save: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write the result as JSON; by default RUN/evaluation.json when RUN is a folder."""


@dataclass(frozen=True, kw_only=True)
class EmbedArgs:
    """Write the features of images, their ids and their labels (if any) to a file."""

    run: Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
    """Run folder, or its backbone.safetensors."""
    data: Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATA")] = ()
    """Images, as for pretraining. By default the data of the run."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("embeddings.npz")
    """File to write: .npz (array, ids, labels, classes) or .parquet (id, embedding, label, class)."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N."""


@dataclass(frozen=True, kw_only=True)
class DoctorArgs:
    """Look at images before hours are spent on them: what they are, which cannot be read, which are there twice, which
    recipe to begin with, and what it would cost on this machine. Nothing is changed.
      ssole doctor photos/
      ssole doctor photos/ --against photos-to-test-on/ --preview views.png
      ssole doctor photos/ --recipe imagenet100 --json report.json

    Every finding says OK, look at this, or stop. Exit code: 0, or 1 when a finding says stop, or 2 for wrong input."""

    data: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA", help_behavior_hint="(required)")
    ] = ()
    """Images: a folder, parquet (files or a folder), or a data set name such as digits-m."""
    against: Annotated[tuple[str, ...], tyro.conf.arg(metavar="TEST", help_behavior_hint="")] = ()
    """Other images, such as those to test on: which of them are among DATA as well?"""
    recipe: Annotated[str | None, tyro.conf.arg(metavar="NAME")] = None
    """Estimate the cost of this recipe (a name, or a YAML file); by default, of the one suggested."""
    device: str = "auto"
    """auto, cpu, cuda or cuda:N; what the suggestion and the estimate are for."""
    preview: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Write a picture (.png) of images and the views that the recipe makes of them."""
    json: Annotated[Path | None, tyro.conf.arg(metavar="FILE")] = None
    """Also write everything as JSON; - writes it to standard output, and the page to standard error."""
    limit: Annotated[int, tyro.conf.arg(metavar="INT")] = 100_000
    """Look at so many images at most, spread evenly over DATA (and over TEST)."""
    estimate: bool = True
    """Run a few training steps (about 20 s) to estimate time and memory."""


def doctor(argv: Sequence[str]) -> int:
    from rich.console import Console

    from ssole.doctor import examine
    from ssole.doctor.page import print_page

    args = tyro.cli(DoctorArgs, args=list(argv), prog="ssole doctor")
    if not args.data:
        raise ConfigError("which images? For example: ssole doctor photos/ (ssole doctor --help tells more)")
    to_stdout = args.json == Path("-")
    if args.json is not None and not args.json.absolute().parent.is_dir():
        raise ConfigError(f"there is no folder {args.json.absolute().parent} for {args.json.name}")
    report = examine(
        _spec(args.data),
        against=_spec(args.against),
        recipe=args.recipe,
        device=args.device,
        limit=args.limit,
        preview=args.preview,
        measure=args.estimate,
    )
    print_page(report, Console(stderr=to_stdout))
    if to_stdout:
        print(report.to_json(), end="")
    elif args.json is not None:
        report.save(args.json)
        print(f"\nsaved: {args.json}")
    return 1 if report.verdict == "stop" else 0


@dataclass(frozen=True, kw_only=True)
class ViewsArgs:
    """Draw what a recipe makes of images: a row for each image, first as it is, then its views."""

    data: Annotated[tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="DATA")] = ("digits-m",)
    """An image, several, or data as for pretraining."""
    recipe: str = api.DEFAULT_RECIPE
    """A recipe's name, the path of a YAML file, or a preset: natural, small, digits, aerial, grey, channels."""
    out: Annotated[Path, tyro.conf.arg(metavar="FILE")] = Path("views.png")
    """Picture to write: .png, .jpg or whatever else Pillow writes."""
    images: int = 6
    """How many images, spread evenly over the data."""
    seed: int = 0
    """The views are those of a run with this seed ..."""
    epoch: int = 0
    """... in this epoch."""
    channels: int | None = None
    """Channels of images that are not photographs, kept at full depth."""


def pretrain(argv: Sequence[str]) -> int:
    args, given = _parse_pretrain(argv)
    if args.resume is not None:
        if others := sorted(given - {"--resume"}):
            raise ConfigError(f"--resume goes on with the run's own settings; leave out {', '.join(others)}")
        _resume(args.resume)
        return 0
    config = args.config if args.views is None else apply_overrides(args.config, {"views": args.views})
    if "--epochs" in given and "--steps" not in given:
        config = apply_overrides(config, {"epochs": config.epochs})  # the recipe's own steps no longer hold
    _print_finished(api.start(config, args.out or api.free_folder(Path("runs"), Path(args.recipe).stem)))
    return 0


def _resume(path: Path) -> None:
    run = Run(path)
    if run.finished:
        print(f"{path} has finished already: there is nothing to go on with.")
    _print_finished(api.resume(run))


def _parse_pretrain(argv: Sequence[str]) -> tuple[PretrainArgs, set[str]]:
    """The arguments, with the recipe's values as defaults, and the names of the options that were given."""
    given = {word.split("=", 1)[0].replace("_", "-") for word in argv if word.startswith("--")}
    recipe = _option(argv, "--recipe") or api.DEFAULT_RECIPE
    config, preset = from_dict(load_recipe(recipe)), _option(argv, "--preset")
    if preset is not None:
        config = apply_overrides(config, {"preset": preset})
    default = PretrainArgs(recipe=recipe, preset=preset, config=config)
    about = PRETRAIN.format(recipes=", ".join(recipe_names()), recipe=recipe)
    return tyro.cli(PretrainArgs, default=default, args=list(argv), prog="ssole pretrain", description=about), given


def _option(argv: Sequence[str], name: str) -> str | None:
    """The value of an option, the last if it was given twice, before the full parser that depends on it exists."""
    value = None
    for word, following in zip(argv, [*argv[1:], "--"], strict=True):
        if word == name and not following.startswith("--"):
            value = following
        elif word.startswith(f"{name}="):
            value = word.split("=", 1)[1]
    return value


def evaluate(argv: Sequence[str]) -> int:
    from rich.console import Console

    from ssole.evaluation.evaluate import evaluate as evaluate_model
    from ssole.views import make_views

    args = tyro.cli(EvalArgs, args=list(argv), prog="ssole eval")
    config = _run_config(args.run)
    result = evaluate_model(
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
    from ssole.evaluation.evaluate import embed as compute

    args = tyro.cli(EmbedArgs, args=list(argv), prog="ssole embed")
    embeddings = compute(args.run, _spec(args.data) or _run_data(_run_config(args.run), args.run), device=args.device)
    path = embeddings.save(args.out)
    print(f"{len(embeddings.ids)} images, {embeddings.array.shape[1]} features each: {path}")
    return 0


def views(argv: Sequence[str]) -> int:
    from PIL import Image

    from ssole.views.picture import picture

    args = tyro.cli(ViewsArgs, args=list(argv), prog="ssole views")
    recipe = view_preset(args.recipe) if args.recipe in PRESETS else from_dict(load_recipe(args.recipe)).augment
    form = Image.registered_extensions().get(args.out.suffix.lower())
    if form not in Image.SAVE:
        raise ConfigError(f"--out names the picture to write, such as views.png; got {args.out}")
    if not args.out.parent.is_dir():
        raise ConfigError(f"there is no folder {args.out.parent} to write {args.out.name} to")
    images, ids = _some_images(args, recipe)
    sheet = picture(images, ids, recipe=recipe, seed=args.seed, epoch=args.epoch)
    write_atomically(args.out, lambda path: sheet.save(path, format=form))
    print(f"{len(images)} image{'s' * (len(images) > 1)} and their views by {args.recipe}: {args.out}")
    return 0


def _some_images(args: ViewsArgs, recipe: ViewRecipe) -> tuple[list[torch.Tensor], torch.Tensor]:
    """The images to draw, and their indices in the data."""
    if args.images < 1:
        raise ConfigError(f"--images must be at least 1, got {args.images}")
    paths = [Path(word) for word in args.data]
    if all(path.suffix.lower() in image_suffixes() for path in paths) and all(path.is_file() for path in paths):
        chosen = evenly_spaced(len(paths), args.images)
        read: list[Any] = [paths[i].read_bytes() for i in chosen]
        names = [str(paths[i]) for i in chosen]
    else:
        source = open_source(_spec(args.data))
        chosen = evenly_spaced(len(source), args.images)
        read, names = [source.read(i) for i in chosen], [source.id(i) for i in chosen]
    size = recipe.useful_size  # as training has them
    how: dict[str, Any] = {"channels": args.channels, "shrink_to": size}
    decoded = [decode(data, where=name, **how) for data, name in zip(read, names, strict=True)]
    return decoded, torch.tensor(chosen)


def _run_config(path: Path) -> PretrainConfig | None:
    """The settings of a finished run; None for a weight file alone."""
    weights_path(path)  # says what is wrong if it is neither
    return Run(path).config if (path / "config.yaml").is_file() else None


def _run_data(config: PretrainConfig | None, run: Path) -> Any:
    if config is None:
        raise ConfigError(f"{run} does not say which images to use: pass --data")
    if is_in_memory(config.data):
        raise ConfigError(f"{run} was trained on images in memory: pass --data")
    return config.data


def _spec(words: tuple[str, ...]) -> Any:
    """What was given after --data or --test: nothing, one thing, or several files."""
    return None if not words else words[0] if len(words) == 1 else list(words)


COMMANDS: dict[str, Callable[[Sequence[str]], int]] = {
    "doctor": doctor,
    "pretrain": pretrain,
    "eval": evaluate,
    "embed": embed,
    "views": views,
}


def _print_finished(run: Run) -> None:
    rows = [row for row in run.metrics if "loss" in row]
    if rows:
        last = rows[-1]
        time, rank = duration(last["seconds"]), last["effective_rank"]
        print(f"{last['step']} steps in {time}, loss {last['loss']:.4f}, effective rank {rank:.0f}")
    if unreadable := run.unreadable:
        first = unreadable[0]
        print(f"{len(unreadable)} unreadable images were left out, such as {first['id']}: {first['reason']}")
        print(f"all of them: {run.path / 'unreadable.jsonl'}")
    print(f"weights: {run.backbone_path}")
    print(f"judge them: ssole eval {run.path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Run the command line; exits with 0, 1 for a failed run, 2 for wrong input, 128 + N after signal N."""
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
        hint = f", did you mean {close[0]!r}?" if close else ""
        print(f"error: no command {argv[0]!r}{hint}\n\n{USAGE}", file=sys.stderr)
        return 2
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(command, argv[1:])


def _run(command: Callable[[Sequence[str]], int], argv: Sequence[str]) -> int:
    """Run a command; what a user can put right is told in a line, without a traceback."""
    try:
        return command(argv)
    except ValueError as error:  # ConfigError and DataError among them: their messages say what to do
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # whoever read the output has seen enough, as `head` does
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # as if SIGPIPE had ended it
    except (FloatingPointError, OSError) as error:  # a loss that is not finite; a full disk
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        print(f"error: {reason}. Lower --batch-size, --views or --augment.crops.0.size", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\n{error}" if str(error) else "\ninterrupted", file=sys.stderr)
        return 128 + int(getattr(error, "signal_number", 2))


def _show_warning(
    message: Warning | str, category: type[Warning], filename: str, lineno: int, file: Any = None, line: Any = None
) -> None:
    """A warning in a line, without the place in the code that a user cannot do anything about."""
    print(f"warning: {message}", file=sys.stderr)
