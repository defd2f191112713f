"""Run: the folder of a pretraining run, and its files. Each is written whole or not at all.

NAME/  config.yaml            every setting
       environment.json       versions, hardware and the settings once more
       metrics.jsonl          one line a log step
       checkpoints/           see ssole.training.checkpoint
       backbone.safetensors   the final weights
       unreadable.jsonl       images that could not be read, if any
       images.json            see ssole.training.images
       failures/              see ssole.training.replay; if any
       schedule.jsonl         see ssole.training.pace; of runs with a budget of time
       init.json              see ssole.training.initial; of runs that start from other weights
       extensions.jsonl       see ssole.training.pace; if it was extended
       .lock                  held by the process that trains
"""

from __future__ import annotations

import json
import shutil
import warnings
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from ssole import distributed
from ssole.config import ConfigError, PretrainConfig, load, to_dict
from ssole.config.recipes import leaves, require_whole
from ssole.errors import DiskError, change_refused, one_line, quoted
from ssole.files import (
    is_leftover,
    locked,
    parse_json,
    read_json,
    remove_leftovers,
    write_text_atomically,
    write_yaml_atomically,
)
from ssole.models.custom import which_differ
from ssole.runtime import environment

Change = Literal["images", "settings", "version"]
"""Kind of change since the start of a run that resuming may accept."""
_NOTHING: Mapping[str, Any] = {}


@dataclass(frozen=True)
class Run:
    """A pretraining run on disk."""

    path: Path

    def __post_init__(self) -> None:
        object.__setattr__(self, "path", Path(self.path))  # so that Run("runs/mine") works

    @property
    def config(self) -> PretrainConfig:
        """Settings that the run was started with; ConfigError if it is no run folder, or config.yaml was damaged."""
        file = self._file("config.yaml")
        if not file.is_file():
            raise ConfigError(f"{self.path} is not a run folder: it has no config.yaml")
        config, recorded = load(file), None
        with suppress(ConfigError, OSError):  # a record that is missing or damaged is an error where it is needed
            recorded = self.environment.get("settings")
        require_whole(file, recorded)
        return config

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
        """Whether training ran to its end. Here and below, a ConfigError if there is no such folder."""
        return self._file(self.backbone_path.name).is_file()

    @property
    def environment(self) -> dict[str, Any]:
        """Versions, hardware and settings that the run was started with; ConfigError if the file was damaged."""
        return read_json(self._file("environment.json"))

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """Lines of metrics.jsonl; ConfigError if the file was damaged."""
        return read_lines(self._file("metrics.jsonl"), step=int)

    @property
    def unreadable(self) -> list[dict[str, Any]]:
        """Images that could not be read and were left out, each as {"index", "id", "reason"}."""
        return read_lines(self._file("unreadable.jsonl"), index=int, id=str, reason=str)

    def _file(self, name: str) -> Path:
        """Path of a file in the folder, which must exist: a mistyped name is no run that has not begun."""
        if not self.path.exists():
            raise ConfigError(f"there is no {self.path}: give a run folder")
        return self.path / name


def create_run(path: Path, config: PretrainConfig, given: Mapping[str, Any] = _NOTHING) -> Run:
    """New run in a folder without files; `OSError` if it cannot be written. `given` are further facts to record."""
    run, settings = Run(path), to_dict(config)
    run.checkpoints.mkdir(parents=True)
    facts = environment() | {"torchrun": distributed.launch().job, "settings": settings, **given}
    write_text_atomically(path / "environment.json", json.dumps(facts, indent=2) + "\n")
    write_yaml_atomically(path / "config.yaml", settings)  # last: a folder with a config.yaml counts as a run
    return run


@contextmanager
def new_run(path: Path, config: PretrainConfig, given: Mapping[str, Any] = _NOTHING) -> Iterator[Run]:
    """New run and its folder, locked for this process.

    Files of a start that was killed before its first step are removed. If the block fails before the first step, what
    was made is removed. A folder that holds anything else is a ConfigError, and so is what :func:`lock_run` refuses.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    is_ours = False  # whether the content of the folder may be removed
    require_free(path)  # before anything is made; the same check under the lock decides
    with making(path):
        path.mkdir(parents=True, exist_ok=True)
    try:
        with lock_run(Run(path)):
            with making(path):
                if _is_killed_start(path):  # still so, now that no other process can be at it
                    _empty(path)
                _require_no_files(path)
                is_ours = True
                run = create_run(path, config, given)
            yield run
    except BaseException:
        if is_ours and not (path / "metrics.jsonl").exists():  # the first step makes it
            with suppress(OSError):  # what cannot be removed stays
                _empty(path)
                (path / ".lock").unlink(missing_ok=True)
                for folder in missing:
                    folder.rmdir()  # an error if it now holds another run
        raise


@contextmanager
def making(path: Path, what: str = "run folder") -> Iterator[None]:
    """Context for making a folder: an `OSError` is a DiskError."""
    try:
        yield
    except NotADirectoryError as error:
        raise ConfigError(f"cannot make the {what} {path}: {error.filename} is a file, not a folder") from None
    except OSError as error:
        raise DiskError(f"cannot make the {what} {path}: {error}") from None


def require_free(path: Path) -> None:
    """Raise a ConfigError if a run cannot begin in a folder: it holds a run, or anything else."""
    with making(path):
        if not _is_killed_start(path):
            _require_no_files(path)


def _require_no_files(path: Path) -> None:
    """Raise a ConfigError if a folder holds a run or anything else but a lock."""
    if (path / "config.yaml").exists():
        raise ConfigError(
            f"{path} already holds a run: go on with it (--resume {quoted(path)}), or choose another folder (--out)"
        )
    if path.exists() and any(entry.name != ".lock" for entry in path.iterdir()):
        raise ConfigError(f"{path} is not empty, and nothing is overwritten: choose another folder (--out)")


def _is_killed_start(path: Path) -> bool:
    """Whether a folder holds no more than what a run writes before its first step, in the order of writing."""
    if not path.is_dir():
        return False
    found, written = [entry for entry in path.iterdir() if entry.name != ".lock"], {"checkpoints"}
    first: set[str] = set()
    if (path / "environment.json").is_file():
        written |= {"environment.json", "config.yaml", "images.json", "init.json", "tensorboard"}
        first = {"step-00000000.safetensors", "step-00000000.json"}
    strange = [entry for entry in found if entry.name not in written]
    strange += [entry for entry in (path / "checkpoints").glob("*") if entry.name not in first]
    return bool(found) and all(entry.is_file() and is_leftover(entry) for entry in strange)


def _empty(path: Path) -> None:
    """Remove all in a run folder but its lock."""
    (path / "config.yaml").unlink(missing_ok=True)  # first, since without it the folder is no run
    for entry in path.iterdir():
        if entry.is_dir():
            shutil.rmtree(entry)
        elif entry.name != ".lock":
            entry.unlink()


@contextmanager
def writing(run: Run, what: str) -> Iterator[None]:
    """Context for writing a file of a run: an `OSError` says what could not be written, and how to go on."""
    try:
        yield
    except OSError as error:
        raise RunDiskError(run, what, error) from error


class RunDiskError(OSError):
    """Error for a file of a run that could not be written. Before the first step, there is no run to go on with."""

    def __init__(self, run: Run, what: str, error: OSError) -> None:
        self.begun = (run.path / "metrics.jsonl").exists()  # else the folder is removed, or anyone may begin in it
        self.problem = f"{what} could not be written to {run.path} ({error.strerror or error})"
        how = f"go on with: ssole pretrain --resume {quoted(run.path)}" if self.begun else "start it again"
        super().__init__(f"{self.problem}.{' Earlier files are untouched.' * self.begun} Once this is fixed, {how}")


@contextmanager
def lock_run(run: Run) -> Iterator[None]:
    """Lock of a run folder for this process; a ConfigError if another has it, or a link leads out of the folder."""
    root = run.path.resolve()
    for entry in run.path.rglob("*"):
        try:
            target = entry.resolve()
        except (OSError, RuntimeError) as error:  # a link to itself is a RuntimeError before Python 3.13
            raise ConfigError(f"{entry} is a link that leads nowhere ({error}): remove it") from None
        if not target.is_relative_to(root):  # in an untrusted folder, it could lead anywhere
            raise ConfigError(f"{entry} is a link to {target}, and a run only writes to its own folder: move it")
    with locked(run.path / ".lock", f"another process is training in {run.path}: wait for it, or stop it first"):
        yield


def require_same_recipe(run: Run, given: Mapping[str, Any] = _NOTHING, *, allowed: Collection[Change] = ()) -> None:
    """Raise a ConfigError if settings or version differ from those of the run's start; warn if that is `allowed`.

    The message lists the differences. A loss in `given` counts as a setting (:meth:`ssole.training.loop.Given.facts`).
    """
    from ssole import __version__

    facts, now = run.environment, dict(leaves(to_dict(run.config)))
    before = dict(leaves(settings)) if isinstance(settings := facts.get("settings"), dict) else {}
    others = sorted(name for name in before.keys() & now.keys() if now[name] != before[name])
    changed = [f"{name} was {before[name]!r} and is {now[name]!r}" for name in others]
    found: list[tuple[Change, str]] = []
    if changed:
        found += [("settings", f"config.yaml of {run.path} changed since the run was started: {'; '.join(changed)}")]
    if (old := facts.get("loss")) != (new := given.get("loss")) and old and new:  # older runs have no record of it
        which = which_differ(facts.get("loss_attributes"), given.get("loss_attributes"))
        words = f"{run.path} was started with the loss {one_line(old)}, and this is {one_line(new)}{which}"
        found += [("settings", words)]
    if facts.get("ssole", __version__) != __version__:
        found += [("version", f"{run.path} was started with ssole {facts['ssole']}, and this is {__version__}")]
    for change, words in found:
        if change not in allowed:
            raise change_refused(words, change)
        warnings.warn(f"{words}; the run goes on with that", stacklevel=2)


def rewind(run: Run, step: int, row: dict[str, Any] | None = None) -> None:
    """Remove leftovers and the metrics after `step`, which will be written again. A `row` is added in their place."""
    path, added = run.path / "metrics.jsonl", [] if row is None else [row]
    with writing(run, path.name):
        for folder in (run.path, run.checkpoints, *run.path.glob("failures/*/")):
            remove_leftovers(folder)
        if path.exists() or added:
            write_lines(path, [*(kept for kept in run.metrics if kept["step"] <= step), *added])


def record_unreadable(run: Run, found: Iterable[tuple[int, str, str]]) -> None:
    """Add images (index, id, reason) to unreadable.jsonl. It keeps those that a resumed run does not meet again."""
    new = {index: {"index": index, "id": name, "reason": reason} for index, name, reason in found}
    rows = {row["index"]: row for row in run.unreadable} if new else {}
    if new.keys() - rows.keys():
        with writing(run, "unreadable.jsonl"):
            write_lines(run.path / "unreadable.jsonl", [row for _, row in sorted((rows | new).items())])


def write_lines(path: Path, rows: Iterable[dict[str, Any]]) -> None:
    """Write mappings to a file, one a line."""
    write_text_atomically(path, "".join(json.dumps(row) + "\n" for row in rows))


def read_lines(path: Path, **kinds: type) -> list[dict[str, Any]]:
    """Mappings in the lines of a file; a ConfigError unless each has values of these names and types."""
    if not path.is_file():
        return []
    text = path.read_text(encoding="utf-8", errors="replace")
    # A kill may have cut the last line short: only lines that end in a newline are complete.
    rows = []
    for number, line in enumerate(text[: text.rfind("\n") + 1].split("\n")[:-1], start=1):
        try:
            row = parse_json(line)
            if missing := [name for name, kind in kinds.items() if type(row.get(name)) is not kind]:
                raise ValueError(f"it has no {missing[0]}")
        except ValueError as error:
            raise ConfigError(f"line {number} of {path} is damaged ({error}): repair or remove this line") from None
        rows.append(row)
    return rows
