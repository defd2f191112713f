"""Run: the folder of a pretraining run, and its files. Each is written whole or not at all.

NAME/  config.yaml            every setting
       environment.json       versions and hardware
       metrics.jsonl          one line a log step
       checkpoints/           see ssole.training.checkpoint
       backbone.safetensors   the final weights
       unreadable.jsonl       images that could not be read, if any
       images.json            number and hash of the images that the run was started on
       .lock                  held by the process that trains
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ssole.config import ConfigError, PretrainConfig, load, to_dict
from ssole.errors import DataError
from ssole.files import remove_leftovers, write_text_atomically

_IMAGES = "images.json"


@dataclass(frozen=True)
class Run:
    """A pretraining run on disk."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # so that Run("runs/mine") works

    @property
    def config(self) -> PretrainConfig:
        """Settings that the run was started with.

        Raises:
            ConfigError: not a run folder, or its config.yaml was damaged.
        """
        file = self.path / "config.yaml"
        if not self.path.exists():
            raise ConfigError(f"there is no {self.path}: give a run folder")
        if not file.is_file():
            raise ConfigError(f"{self.path} is not a run folder: it has no config.yaml")
        return load(file)

    @property
    def checkpoints(self) -> Path:
        """Folder of the checkpoints."""
        return self.path / "checkpoints"

    @property
    def backbone_path(self) -> Path:
        """File of the final weights, which timm can load."""
        return self.path / "backbone.safetensors"

    @property
    def finished(self) -> bool:
        """Whether training ran to its end."""
        return self.backbone_path.is_file()

    @property
    def environment(self) -> dict[str, Any]:
        """Versions and hardware that the run was started on."""
        found: dict[str, Any] = json.loads((self.path / "environment.json").read_text(encoding="utf-8"))
        return found

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl."""
        return _read_lines(self.path / "metrics.jsonl")

    @property
    def unreadable(self) -> list[dict[str, Any]]:
        """Images that could not be read and were left out, each as {"index", "id", "reason"}."""
        return _read_lines(self.path / "unreadable.jsonl")


def create_run(path: Path, config: PretrainConfig) -> Run:
    """Make a new run and its folder.

    Raises:
        ConfigError: the folder holds a run or anything else already, or cannot be made.
    """
    import yaml

    if (path / "config.yaml").exists():
        raise ConfigError(
            f"{path} already holds a run: go on with it (--resume {path}), or choose another folder (--out)"
        )
    try:
        if path.exists() and any(path.iterdir()):
            raise ConfigError(f"{path} is not empty, and nothing is overwritten: choose another folder (--out)")
        run = Run(path)
        run.checkpoints.mkdir(parents=True)
        write_text_atomically(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
        # last, because a folder with a config.yaml counts as a run
        write_text_atomically(path / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    except OSError as error:
        raise ConfigError(f"cannot make the run folder {path}: {error}") from None
    return run


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Lock of a run folder for this process. The operating system releases it however the process ends.

    Raises:
        ConfigError: another process is training there.
    """
    from filelock import FileLock, Timeout

    lock = FileLock(run.path / ".lock", blocking=False)
    try:
        held = lock.acquire()
    except Timeout:
        raise ConfigError(f"another process is training in {run.path}: wait for it, or stop it first") from None
    with held:
        yield


def environment() -> dict[str, Any]:
    """Versions and hardware of this process, for the record."""
    import timm

    from ssole import __version__

    return {
        "ssole": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def rewind(run: Run, step: int) -> None:
    """Remove leftovers and the metrics after `step`; a resumed run writes these metrics again."""
    remove_leftovers(run.path)
    remove_leftovers(run.checkpoints)
    _write_lines(run.path / "metrics.jsonl", [row for row in run.metrics if row["step"] <= step])


def record_images(run: Run, images: int, ids_fingerprint: str) -> None:
    """Write the number of images and a hash of their ids, for :func:`require_same_images`."""
    write_text_atomically(run.path / _IMAGES, json.dumps({"images": images, "ids": ids_fingerprint}) + "\n")


def require_same_images(run: Run, images: int, ids_fingerprint: str) -> None:
    """Raise a DataError unless the run was started on these images, with these ids in this order."""
    path = run.path / _IMAGES
    if not path.is_file():  # a run of an older version
        return
    before = json.loads(path.read_text(encoding="utf-8"))
    if before["images"] != images:
        raise DataError(
            f"the run was started on {before['images']} images and the data now hold {images}: resuming needs the same"
        )
    if before["ids"] != ids_fingerprint:
        raise DataError(
            f"the run was started on as many images ({images}) by other names or in another order: resuming needs the "
            "same, since the views of an image depend on its index"
        )


def record_unreadable(run: Run, found: Iterable[tuple[int, str, str]]) -> None:
    """Add images (index, id, reason) to unreadable.jsonl. It keeps those that a resumed run does not meet again."""
    rows = {row["index"]: row for row in run.unreadable}
    new = {index: {"index": index, "id": name, "reason": reason} for index, name, reason in found}
    if new.keys() - rows.keys():
        _write_lines(run.path / "unreadable.jsonl", [row for _, row in sorted((rows | new).items())])


def _write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def _read_lines(path: Path) -> list[dict[str, Any]]:
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8")
    # A kill may have cut the last line short: only lines that end in a newline are complete.
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]
