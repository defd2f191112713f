"""Recipes: named settings that ship with the package, or a YAML file of one's own."""

from __future__ import annotations

import difflib
from pathlib import Path
from typing import Any

from ssole.config.schema import ConfigError


def load_recipe(name: str) -> dict[str, Any]:
    """The values of a recipe: a shipped name (see :func:`recipe_names`) or the path of a YAML file.

    Raises:
        ConfigError: no such recipe (with the closest one), or a file that is not a YAML mapping.
    """
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = _recipe_folder() / f"{name}.yaml"
    if not path.is_file():
        close = difflib.get_close_matches(path.stem, recipe_names(), n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"no recipe {name!r}.{hint} Shipped: {', '.join(recipe_names())}; or give a .yaml file")
    return read_settings(path)


def read_settings(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file, a recipe or the config.yaml of a run.

    Raises:
        ConfigError: not YAML, or not a mapping.
    """
    import yaml

    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(values).__name__}")
    return values


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in _recipe_folder().glob("*.yaml"))


def _recipe_folder() -> Path:
    return Path(__file__).parent.parent / "recipes"
