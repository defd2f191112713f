"""Options, checks and look-ups that several commands share."""

from __future__ import annotations

import inspect
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

import tyro

from ssole import distributed
from ssole.config import ConfigError, PretrainConfig
from ssole.data.base import Spec
from ssole.data.describe import are_paths, images_of_run
from ssole.errors import printable
from ssole.models.load import weights_path
from ssole.training.run import Change, Run

Command = TypeVar("Command")

RunPath = Annotated[tyro.conf.Positional[Path], tyro.conf.arg(metavar="RUN")]
DataWords = Annotated[tuple[str, ...], tyro.conf.arg(metavar="DATA", help_behavior_hint="")]
FilePath = Annotated[Path, tyro.conf.arg(metavar="FILE")]
OptionalFile = Annotated[Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="")]
OptionalFolder = Annotated[Path | None, tyro.conf.arg(metavar="FOLDER", help_behavior_hint="")]
OptionalName = Annotated[str | None, tyro.conf.arg(metavar="NAME", help_behavior_hint="")]
OptionalNumber = Annotated[int | None, tyro.conf.arg(metavar="INT", help_behavior_hint="")]
Device = Annotated[str, tyro.conf.arg(help="auto, cpu, cuda or cuda:N.")]
TrialChanges = Annotated[
    tuple[Literal["images", "version"], ...], tyro.conf.arg(metavar="images|version", help_behavior_hint="")
]
Changes = Annotated[tuple[Change, ...], tyro.conf.arg(metavar="images|settings|version", help_behavior_hint="")]


def parse(command: Callable[..., Command], argv: Sequence[str]) -> Command:
    """Command with its options, parsed from arguments; --help prints the docstring of the class and exits.

    Of many processes, the first one prints help and errors.
    """
    prog = f"ssole {command.__name__.lower()}"
    prints = not distributed.launch().rank
    return tyro.cli(command, args=list(argv), prog=prog, description=inspect.getdoc(command), console_outputs=prints)


def show(text: str) -> None:
    """Print text on standard output, without the characters in names and values that would steer a terminal."""
    print(printable(text))


def data_spec(words: tuple[str, ...]) -> Any:
    """Value of --data or --test: None, one name or path, or a list of paths."""
    return None if not words else words[0] if len(words) == 1 else list(words)


def run_config(path: Path) -> PretrainConfig | None:
    """Settings of a finished run, or None for a weight file alone."""
    weights_path(path)  # raises an error for anything else
    return Run(path).config if (path / "config.yaml").is_file() else None


def run_data(config: PretrainConfig | None, run: Path | str) -> Any:
    """Images that a run was trained on, as its config names them."""
    if config is None:
        raise ConfigError(f"{run} does not say which images to use: pass --data")
    return images_of_run(config.data, run)


def picture_format(out: Path) -> str:
    """Pillow's name for the format of a picture to write; a ConfigError if there is none, or no such folder."""
    from PIL import Image

    file_format = Image.registered_extensions().get(out.suffix.lower())
    if file_format not in Image.SAVE:
        raise ConfigError(f"--out names the picture to write, such as picture.png; got {out}")
    require_file_to_write(out)
    return file_format


def require_file_to_write(out: Path) -> None:
    """Raise a ConfigError if a file to write is a folder, or is to lie in one that does not exist."""
    if out.is_dir():
        raise ConfigError(f"{out} is a folder: name a file to write")
    if not out.parent.is_dir():
        raise ConfigError(f"there is no folder {out.parent} to write {out.name} to")


def require_apart(out: Path, images: Spec) -> None:
    """Raise a ConfigError if a picture to write would be one of these images, or take the place of one."""
    given = images if are_paths(images) else [images]
    for path in [Path(one) for one in given if isinstance(one, (str, os.PathLike)) and os.path.exists(one)]:
        if out.resolve().is_relative_to(path.resolve()):
            raise ConfigError(f"{out} would be one of the images in {path}: name another place by --out")
