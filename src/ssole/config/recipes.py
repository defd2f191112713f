"""Recipes and overrides: from YAML and dotted names to a checked config, with hints for mistyped names."""

from __future__ import annotations

import dataclasses
import difflib
import json
import re
import types
import typing
from collections.abc import Iterator, Mapping
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ssole.config.presets import with_preset
from ssole.config.schema import ConfigError, Crop, PretrainConfig

if TYPE_CHECKING:
    from pydantic import TypeAdapter


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


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dicts, lists and scalars, ready for YAML or JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(values: Mapping[str, Any]) -> PretrainConfig:
    """Build a config from nested plain values. Missing keys keep their defaults.

    Raises:
        ConfigError: an unknown key (with the closest known one), a value of the wrong type or out of range.
    """
    from pydantic import ValidationError

    _reject_unknown(values, PretrainConfig, "")
    try:
        # JSON strict mode: no "3" for 3 and no 1.5 for an integer, but lists may fill tuples
        return _adapter().validate_json(_to_json(values), strict=True)
    except ValidationError as error:
        found = {_explain(item["type"], item["loc"], item["msg"], item["input"]) for item in error.errors()}
        raise ConfigError("; ".join(sorted(found))) from None


def apply_overrides(config: PretrainConfig, overrides: Mapping[str, Any]) -> PretrainConfig:
    """A copy of `config` with fields replaced.

    Args:
        overrides: dotted field names to values (``{"optim.lr": 1.0, "augment.crops.0.size": 64, "epochs": 5}``).
            ``views`` is short for the count of the first crop group, and ``preset`` for all of ``augment`` but its
            crops (see :func:`ssole.config.view_preset`). A dict value replaces only the fields it names.
            ``epochs`` without ``steps`` clears the recipe's own ``steps``, which would otherwise win.

    Raises:
        ConfigError: as :func:`from_dict`.
    """
    values, overrides = to_dict(config), dict(overrides)
    preset = overrides.pop("preset", None)
    if preset is not None:  # first, so that single settings given beside it win
        values["augment"] = to_dict(with_preset(config.augment, str(preset)))
    if "epochs" in overrides:
        values["steps"] = None
    for name, value in overrides.items():
        path = "augment.crops.0.count" if name == "views" else name
        _merge(values, path.split("."), json.loads(_to_json(value)), name)
    return from_dict(values)


@lru_cache(maxsize=1)
def _adapter() -> TypeAdapter[PretrainConfig]:
    from pydantic import TypeAdapter

    return TypeAdapter(PretrainConfig)


def _to_json(value: Any) -> str:
    def plain(part: Any) -> Any:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            return dataclasses.asdict(part)
        if isinstance(part, PathLike):
            return str(part)
        if hasattr(part, "item"):  # a number of NumPy or torch
            return part.item()
        raise ConfigError(f"a setting cannot be a {type(part).__name__}, got {part!r}")

    return json.dumps(value, default=plain)


def _explain(kind: str, place: tuple[int | str, ...], message: str, given: Any) -> str:
    """What was wrong, from what pydantic says."""
    if place[:1] == ("data",):  # one message instead of one for each type that it might have been
        return f"data must be a name, a path or a list of paths, got {given!r}"
    name = ".".join(str(part) for part in place)
    if kind == "value_error":  # ours, which quotes what it needs
        text = message.removeprefix("Value error, ")
        return f"{name}: {text}" if name else text
    hint = "; YAML takes 1e-4 for text, and 1.0e-4 for a number" if _is_text_of_number(given) else ""
    return f"{name}: {message}, got {given!r}{hint}"


def _is_text_of_number(given: Any) -> bool:
    return isinstance(given, str) and re.fullmatch(r"[+-]?\d+e[+-]?\d+", given, re.IGNORECASE) is not None


def _merge(node: Any, path: list[str], value: Any, name: str) -> None:
    """Put `value` at `path` below `node`, nested dicts and lists; `name` is what the user calls it."""
    first, *rest = path
    if isinstance(node, list):
        if not first.isdigit() or int(first) >= len(node):
            raise ConfigError(f"unknown setting {name!r}: {first!r} should be a number from 0 to {len(node) - 1}")
        key: Any = int(first)
    else:
        key = first
    inner = node[key] if isinstance(node, list) else node.get(key)
    if rest:
        if not isinstance(inner, (dict, list)):
            raise ConfigError(f"unknown setting {name!r}: there is no group {first!r}.{_did_you_mean(name)}")
        _merge(inner, rest, value, name)
    elif isinstance(value, Mapping) and isinstance(inner, dict) and key != "backbone_args":
        for part, given in value.items():
            _merge(inner, [str(part)], given, f"{name}.{part}")
    else:
        node[key] = value


def _reject_unknown(values: Mapping[str, Any], cls: type, prefix: str) -> None:
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            raise ConfigError(f"unknown setting {prefix + str(key)!r}.{_did_you_mean(prefix + str(key))}")
        inner = hints[key]
        if dataclasses.is_dataclass(inner) and isinstance(value, Mapping):
            _reject_unknown(value, typing.cast(type, inner), f"{prefix}{key}.")
        elif key == "crops" and isinstance(value, (list, tuple)):
            for number, crop in enumerate(value):
                if isinstance(crop, Mapping):
                    _reject_unknown(crop, Crop, f"{prefix}crops.{number}.")


def field_paths(cls: type, prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and types of all settings below a config class."""
    for name, hint in typing.get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint) and not isinstance(hint, types.GenericAlias):
            yield from field_paths(typing.cast(type, hint), f"{prefix}{name}.")
        else:
            yield prefix + name, hint


def _did_you_mean(name: str) -> str:
    """A hint at the setting that was meant: by its last part, which need not be whole, or by closeness."""
    known = [path for path, _ in field_paths(PretrainConfig)]
    tails = {path: path.rsplit(".", 1)[-1] for path in known}
    asked = name.rsplit(".", 1)[-1]
    exact = [path for path, tail in tails.items() if tail == asked]
    partial = [path for path, tail in tails.items() if asked in tail.split("_")]
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    similar = difflib.get_close_matches(asked, list(tails.values()), n=1, cutoff=0.6)
    by_tail = [path for path, tail in tails.items() if tail in similar]
    for found in (exact, close, partial, by_tail):
        if found:
            return f" Did you mean {found[0]!r}?"
    return ""
