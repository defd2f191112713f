"""Request of a comparison: its arms, data, budget and search, checked, and the file that holds them."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, TypeAlias

from torch import nn

from ssole.config import ConfigError, PretrainConfig, Projector, apply_overrides, from_dict, to_dict
from ssole.config.budget import Budget
from ssole.config.recipes import leaves, read_mapping
from ssole.files import is_leftover, reading, write_yaml_atomically
from ssole.models.custom import identity_of
from ssole.training.initial import with_absolute_init
from ssole.training.run import making

Methods: TypeAlias = "Sequence[str] | Mapping[str, Mapping[str, Any] | nn.Module]"
"""Names of losses; or arms by name, each with its settings, or with a loss of your own."""

PLAN_FILE = "plan.json"
"""File of the plan, which is written when a step of each arm has been measured."""
START_ANEW = "start the comparison anew in another folder"
"""Advice for a folder whose files are damaged."""
_FILE = "comparison.yaml"
_SET_FOR_RUNS = {
    **dict.fromkeys(("epochs", "steps", "budget"), "all runs have the length that budget (--budget) gives them"),
    "seed": "runs have the seeds 0, 1, ..., as many as seeds (--seeds) says",
    "data": "all runs have the images of the comparison (--data)",
    "eval_data": "all runs are tested on the images of the comparison (--test)",
    "knn_every": "every run is measured ten times in its course",
}
"""Settings that a comparison gives its runs, each with the reason."""


@dataclass(frozen=True, kw_only=True)
class Arm:
    """One of the compared methods, or one setting of a method."""

    name: str
    config: PretrainConfig
    """Complete settings, except for the seed and the number of steps, which trials set."""
    pinned: tuple[str, ...] = ()
    """Settings that the search leaves as they are, by dotted name."""
    module: nn.Module | None = field(default=None, compare=False)
    """Loss of your own; each trial trains a copy of it."""


@dataclass(frozen=True, kw_only=True)
class Request:
    """Settings of a comparison. Equal requests train the same runs."""

    arms: tuple[Arm, ...]
    data: str | tuple[str, ...]
    """Text that names the training images (:func:`ssole.data.describe.describe`)."""
    test: str | tuple[str, ...] | None
    budget: Budget
    """What each run may take."""
    seeds: int
    """Number of runs of each arm, with seeds 0, 1, ... Arms share images, their order, views and initial backbone."""
    search: int
    """Number of settings tried for each arm; 0 for no search."""
    images: int | None = None
    """Size of the sample of training images, to which one of each class that it lacks is added; None for all."""

    def __post_init__(self) -> None:
        check_numbers(seeds=self.seeds, search=self.search, images=self.images)

    def to_dict(self) -> dict[str, Any]:
        """The request as plain dicts and lists, ready for YAML or JSON."""
        arms = {
            arm.name: {
                "config": to_dict(arm.config),
                "pinned": list(arm.pinned),
                "code": None if arm.module is None else identity_of(arm.module),
            }
            for arm in self.arms
        }
        plain = {name: getattr(self, name) for name in ("data", "test", "seeds", "search", "images")}
        plain = {name: list(value) if isinstance(value, tuple) else value for name, value in plain.items()}
        return {**plain, "budget": dataclasses.asdict(self.budget), "arms": arms}


def check_numbers(*, seeds: int, search: int, images: int | None) -> None:
    """Raise a ConfigError for a number that a request cannot have."""
    for name, value in (("seeds", seeds), ("search", search), ("images", images)):
        if not isinstance(value, int) and not (name == "images" and value is None):
            raise ConfigError(f"{name} must be a whole number, got {value!r}")
    if seeds < 1:
        raise ConfigError(f"a comparison needs at least 1 seed, got {seeds}")
    if search < 0 or search == 1:
        raise ConfigError(f"a search has 2 trials or more, or 0 for none, got {search}")
    if images is not None and images < 2:
        raise ConfigError(f"a comparison needs at least 2 training images, got {images}")


def make_arms(methods: Methods, base: PretrainConfig, *, projector: Literal["recipe", "published"]) -> tuple[Arm, ...]:
    """Arms of methods: the settings of the recipe `base`, with the changes that each arm makes.

    Arms keep the recipe's projector, or take the one published for their loss. A ConfigError for a loss that does not
    exist (the message names a close one), a wrong setting or projector, or fewer than two arms.
    """
    if isinstance(methods, str) or not isinstance(methods, (Mapping, Sequence)):
        raise ConfigError(f"methods are a list of losses, or arms by name with their settings, got {methods!r}")
    if wrong := [name for name in methods if not isinstance(name, str)]:
        raise ConfigError(f"methods are named by texts, got {wrong[0]!r}")
    if projector not in ("recipe", "published"):
        raise ConfigError(
            f"projector must be 'recipe' (the same for all methods) or 'published' (each its own), got {projector!r}"
        )
    named = methods if isinstance(methods, Mapping) else {name: {"loss.name": name} for name in methods}
    if len(named) < 2 or (not isinstance(methods, Mapping) and len(named) < len(methods)):
        raise ConfigError(f"a comparison needs two different methods or more, got {', '.join(methods) or 'none'}")
    for name in named:
        if not re.fullmatch(r"[\w.+= -]{0,79}[\w+=-]", name):  # Windows drops a dot or blank at the end of a name
            raise ConfigError(
                f"the name of an arm is a folder's too: letters, digits, and . + = - _, no dot at its end, got {name!r}"
            )
    if alike := [name for name in named if [other.casefold() for other in named].count(name.casefold()) > 1]:
        raise ConfigError(
            f"{' and '.join(alike)} differ in capitals alone, and macOS and Windows would give them one folder: "
            "name the arms differently"
        )
    return tuple(_make_arm(name, given, base, projector) for name, given in named.items())


def _make_arm(name: str, given: Mapping[str, Any] | nn.Module, base: PretrainConfig, projector: str) -> Arm:
    if isinstance(given, nn.Module):
        config = apply_overrides(base, {"loss": {"name": "custom", "module": type(given).__qualname__}})
        return Arm(name=name, config=with_absolute_init(config), module=given)
    if not isinstance(given, Mapping):
        raise ConfigError(
            f"the arm {name!r} needs settings, such as loss.name: simclr, or a loss module; got {given!r}"
        )
    refuse_settings_of_runs(given, f"the arm {name!r}")
    settings = dict(leaves(given))
    config = apply_overrides(base, given)
    if projector == "recipe" and config.loss.projector.layers:  # a loss without a projector stays without
        shape = {f"model.projector_{part}": getattr(base.projector, part) for part in Projector._fields}
        config = apply_overrides(config, {key: value for key, value in shape.items() if key not in settings})
    return Arm(name=name, config=with_absolute_init(config), pinned=tuple(sorted(settings)))


def refuse_settings_of_runs(settings: Mapping[str, Any], whose: str, *, allowed: Collection[str] = ()) -> None:
    """Raise a ConfigError for a setting that the comparison itself gives its runs, unless it is `allowed`."""
    for name in settings:
        if name in _SET_FOR_RUNS and name not in allowed:
            raise ConfigError(f"{name} of {whose} would have no effect: {_SET_FOR_RUNS[name]}")


def save_request(folder: Path, request: Request, *, what: str = "comparison") -> None:
    """Write the request to `WHAT.yaml` in a folder, or check that it is the one that the folder was made with.

    Without a plan, as after a wrong setting, nothing has been trained, and the request is written anew. A folder with
    another comparison is a ConfigError that names the differences; so is one with other files.
    """
    path, new = folder / f"{what}.yaml", request.to_dict()
    if not (path.is_file() and (folder / PLAN_FILE).is_file()):
        if any(entry.name not in (".lock", path.name) and not is_leftover(entry) for entry in folder.iterdir()):
            raise ConfigError(f"{folder} is not empty, and nothing is overwritten: choose another folder (--out)")
        with making(folder, what):  # there is nothing to go on with yet, as an `OSError` would have it
            write_yaml_atomically(path, new)
    elif changes := _differences(_with_new_settings(read_mapping(path)), new):
        more = f"; and {len(changes) - 5} more" if len(changes) > 5 else ""
        raise ConfigError(
            f"{folder} holds another {what}, which cannot go on with other settings: {'; '.join(changes[:5])}{more}. "
            "Choose another folder (--out)"
        )


def _with_new_settings(saved: dict[str, Any]) -> dict[str, Any]:
    """Saved request, with defaults for settings that are newer than it."""
    arms = saved.get("arms")
    if not isinstance(arms, dict) or not all(isinstance(arm, dict) and "config" in arm for arm in arms.values()):
        return saved
    whole = {name: {**arm, "config": to_dict(from_dict(arm["config"]))} for name, arm in arms.items()}
    return {**saved, "arms": whole}


def load_request(folder: Path) -> Request:
    """Request that a comparison's folder was made with.

    A ConfigError for another folder, and for arms that are modules, which no file holds.
    """
    path = folder / _FILE
    if not path.is_file():
        raise ConfigError(f"{folder} is not the folder of a comparison: it has no {_FILE}")
    with reading(path, START_ANEW):
        saved = read_mapping(path)
        if coded := [name for name, arm in saved["arms"].items() if arm["code"]]:
            raise ConfigError(
                f"{', '.join(coded)} is code from Python: call ssole.compare again with the same arguments"
            )
        arms = tuple(
            Arm(name=name, config=from_dict(arm["config"]), pinned=tuple(arm["pinned"]))
            for name, arm in saved.pop("arms").items()
        )
        data, test = (tuple(one) if isinstance(one, list) else one for one in (saved.pop("data"), saved.pop("test")))
        return Request(arms=arms, budget=Budget(**saved.pop("budget")), data=data, test=test, **saved)


def _differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Settings that differ, each as `name: OLD before, NEW now`."""
    if isinstance(old, dict) and isinstance(new, dict):
        keys = [*old, *(key for key in new if key not in old)]
        return [
            found
            for key in keys
            for found in _differences(old.get(key), new.get(key), f"{name}.{key}" if name else str(key))
        ]
    if old == new:
        return []
    return [f"{name}: {_short(old)} before, {_short(new)} now"]


def _short(value: Any) -> str:
    return "nothing" if value is None else "settings" if isinstance(value, dict) else repr(value)
