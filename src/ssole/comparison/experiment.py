"""Experiment: a YAML file with the arguments of `ssole.compare`."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ssole.comparison.compare import compare
from ssole.config import ConfigError
from ssole.config.recipes import read_mapping
from ssole.errors import did_you_mean

_OPTIONS = inspect.signature(compare).parameters.keys() - {"overrides"}
_KEYS = _OPTIONS - {"out", "progress", "allow_changes"} | {"set"}


def read_experiment(path: Path) -> dict[str, Any]:
    """Arguments of :func:`ssole.compare` from a file.

        recipe: cifar10-cpu             a name, or a file's path from this file or from the working directory
        budget: 600steps
        search: 0
        set: {optim.lr: 0.02}           settings for all arms
        methods:                        a list of losses, or arms by name with their settings
          lambda 1: {loss.name: ssole, loss.high_rank_weight: 1.0}
          lambda 2: {loss.name: ssole, loss.high_rank_weight: 2.0}

    A file that is missing, is no YAML mapping, or has a key that does not exist is a ConfigError.
    """
    if not path.is_file():
        raise ConfigError(
            f"there is no experiment {path}: give a YAML file, or --methods with commas between them (ssole,simclr)"
        )
    values = read_mapping(path)
    for key in values:
        if key not in _KEYS:
            hint = did_you_mean(str(key), _KEYS)
            raise ConfigError(f"{path}: unknown key {key!r}.{hint} There are: {', '.join(sorted(_KEYS))}")
    settings = values.pop("set", {})
    if not isinstance(settings, dict):
        raise ConfigError(f"{path}: set must be a mapping of settings, got {settings!r}")
    settings = {str(name): value for name, value in settings.items()}  # YAML has names that are numbers
    check_settings(settings)
    if (beside := path.parent / str(values.get("recipe", ""))).is_file():  # a recipe from this file
        values["recipe"] = beside
    return {**settings, **values}


def check_settings(settings: Mapping[str, Any]) -> None:
    """Raise a ConfigError if a setting for all arms is an option of the comparison itself."""
    if options := _OPTIONS & settings.keys():
        name = min(options)
        raise ConfigError(f"{name} is no setting of the arms but an option: give it as `{name}`, or by --{name}")
