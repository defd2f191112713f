"""Recipes and overrides: checked configs from YAML and dotted names."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Iterator, Mapping
from functools import lru_cache
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from ssole.config.hints import explain, hint_at_setting
from ssole.config.losses import LOSS_CONFIGS, CustomConfig, Projector
from ssole.config.schema import ModelConfig, OptimConfig, PretrainConfig
from ssole.config.view_recipe import Crop, ViewRecipe, view_preset
from ssole.errors import ConfigError, did_you_mean

if TYPE_CHECKING:
    from pydantic import TypeAdapter

Config = TypeVar("Config")
DEFAULT_RECIPE = "digits-m"
"""Recipe of a run that is given neither a recipe nor data."""
_NO_RESNETS = ("inception_", "legacy_", "nf_", "tresnet", "vit_")
"""Prefixes of timm's names with "resne" of networks that do not take the arguments of a ResNet."""
_RECIPES = Path(__file__).parent.parent / "recipes"


def load(name: str | PathLike[str], /, **overrides: Any) -> PretrainConfig:
    """Config of a recipe, with overrides.

        load("cifar10", batch_size=64, preset="aerial", **{"optim.lr": 1.0})

    Args:
        name: a shipped recipe (see :func:`recipe_names`), or the path of a YAML file: a recipe or a run's config.yaml.
        overrides: settings by name or dotted name, as for :func:`apply_overrides`.

    Raises:
        ConfigError: no such recipe (with the closest one), a file that is not a YAML mapping, or a wrong setting.
    """
    if not isinstance(name, (str, PathLike)):
        raise ConfigError(f"a recipe is a name, or the path of a YAML file, got {name!r}")
    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = _RECIPES / f"{name}.yaml"
    if not path.is_file():
        if path == Path(name):
            raise ConfigError(f"there is no recipe file {str(name)!r}")
        hint = did_you_mean(path.stem, names := recipe_names())
        raise ConfigError(f"no recipe {str(name)!r}.{hint} Shipped: {', '.join(names)}; or give a .yaml file")
    try:
        config = from_dict(read_mapping(path))
    except ConfigError as error:
        raise ConfigError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    return apply_overrides(config, overrides)


def recipe_names() -> list[str]:
    """Names of the recipes that ship with the package."""
    return sorted(path.stem for path in _RECIPES.glob("*.yaml"))


# A recipe has about 1,000 bytes, 50 values and 4 levels. The limits are far above that, as `data` may list many files.
_MAX_BYTES, _MAX_VALUES, _MAX_DEPTH = 1 << 26, 500_000, 20


def read_mapping(path: Path) -> dict[str, Any]:
    """Mapping in a YAML file, read with limits because the file may be untrusted.

    Aliases (``*name``) are not read, because a few lines of them can stand for more values than fit into memory. A file
    that is no YAML, no mapping, too long, nested too deeply, or has aliases or a key twice is a ConfigError.
    """
    import yaml

    try:
        with open(path, "rb") as file:
            data = file.read(_MAX_BYTES + 1)
        if len(data) > _MAX_BYTES:
            raise ValueError(f"it has more than {_MAX_BYTES} bytes")
        text = data.decode("utf-8")
        _check_limits(text)
        _check_keys(yaml.compose(text, _yaml_loader()))
        values = yaml.load(text, _yaml_loader())
    except (yaml.YAMLError, ValueError, TypeError, OverflowError) as error:  # the last two from odd numbers and dates
        raise ConfigError(f"{path} is not valid YAML: {error}") from None
    if not isinstance(values, dict):
        raise ConfigError(f"{path} must hold a mapping of settings, found {type(values).__name__}")
    return values


def _yaml_loader() -> Any:
    """Safe loader of YAML; if possible the one in C, which is ten times as fast."""
    import yaml

    return getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _check_limits(text: str) -> None:
    """Raise a `ValueError` for aliases, deep nesting or too many values, before any object is made."""
    import yaml

    depth = 0
    for number, event in enumerate(yaml.parse(text, _yaml_loader())):
        if isinstance(event, yaml.AliasEvent):
            line = event.start_mark.line + 1 if event.start_mark else "?"
            raise ValueError(f"line {line} has an alias (*{event.anchor}): write the value out")
        depth += isinstance(event, yaml.CollectionStartEvent) - isinstance(event, yaml.CollectionEndEvent)
        if depth > _MAX_DEPTH:
            raise ValueError(f"it is nested more than {_MAX_DEPTH} levels deep")
        if number > _MAX_VALUES:
            raise ValueError(f"it has more than {_MAX_VALUES} values")


def _check_keys(node: Any) -> None:
    """Raise a `ValueError` for a key that a mapping has twice: YAML would drop the first value in silence."""
    import yaml

    if isinstance(node, yaml.MappingNode):
        seen = set()
        for key, value in node.value:
            if (name := str(key.value)) in seen:
                raise ValueError(f"line {key.start_mark.line + 1} has {name!r} a second time: leave one of them")
            seen.add(name)
            _check_keys(value)
    elif isinstance(node, yaml.SequenceNode):
        for value in node.value:
            _check_keys(value)


def to_dict(config: Any) -> dict[str, Any]:
    """Config as plain dicts, lists and scalars, ready for YAML or JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def leaves(settings: Mapping[str, Any], group: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted names and values of nested settings."""
    for name, value in settings.items():
        if isinstance(value, dict) and value:
            yield from leaves(value, f"{group}{name}.")
        else:
            yield f"{group}{name}", value


def require_whole(path: Path, recorded: object) -> None:
    """Raise a ConfigError if a run's config.yaml lacks the last of the settings that were recorded when it was written.

    What else it lacks has its default, as in runs of older versions.
    """
    last = [name for name, _ in leaves(recorded)][-1:] if isinstance(recorded, dict) else []
    if not set(last) <= dict(leaves(read_mapping(path))).keys():
        raise ConfigError(f"{path} was cut short, {last[0]} is missing: environment.json has all settings, restore it")


def from_dict(values: Mapping[str, Any]) -> PretrainConfig:
    """Config from nested plain values. Missing keys keep their defaults.

    A ConfigError for an unknown key (with the closest known one), or a value of the wrong type or out of range.
    """
    plain = {name: value for name, value in values.items() if name != "loss"}
    if plain.get("guardian") is False:  # what YAML makes of `guardian: off`
        plain["guardian"] = "off"
    config = _validated(PretrainConfig, plain)
    if "loss" not in values:
        return config
    loss = values["loss"]
    if not isinstance(loss, Mapping):
        raise ConfigError(f"loss must be a mapping of settings, got {loss!r}")
    name = loss.get("name", "ssole")
    if not isinstance(name, str) or name not in LOSS_CONFIGS:
        names = [one for one in LOSS_CONFIGS if one != CustomConfig.name]  # a recipe cannot name code
        raise ConfigError(f"no loss {name!r}.{did_you_mean(str(name), names)} There are: {', '.join(names)}")
    return dataclasses.replace(config, loss=_validated(LOSS_CONFIGS[name], loss, "loss"))


def _validated(cls: type[Config], values: Mapping[str, Any], *prefix: str) -> Config:
    """Config of a class from plain values; `prefix` is their path in the whole config, for messages."""
    from pydantic import ValidationError

    try:
        # JSON in strict mode accepts a list for a tuple, but not "3" for 3, nor 1.5 for an integer
        config: Config = _adapter(cls).validate_json(_to_json(values), strict=True)  # type: ignore[arg-type]
    except ValidationError as error:
        found = {explain(item["type"], (*prefix, *item["loc"]), item["msg"], item["input"]) for item in error.errors()}
        raise ConfigError("; ".join(sorted(found))) from None
    return config


def apply_overrides(config: PretrainConfig, overrides: Mapping[str, Any]) -> PretrainConfig:
    """Copy of a config with other values for some fields.

    Args:
        overrides: dotted field names to values (``{"optim.lr": 1.0, "augment.crops.0.size": 64, "epochs": 5}``).
            A dict replaces only the fields it names, but ``backbone_args`` as a whole. ``views`` is short for the count
            of the first crop group. ``preset`` (:func:`~ssole.config.view_recipe.view_preset`) replaces all of
            ``augment`` but crops and early ones.
            ``epochs``, ``steps`` and ``budget`` clear those of the recipe. A budget beside another of them is an error.
            Another ``loss.name`` clears the recipe's settings of loss and projector; another ``model.backbone`` its
            arguments, and its stem unless the new one is a ResNet.

    Raises:
        ConfigError: as :func:`from_dict`.
    """
    values = to_dict(config)
    given: dict[str, Any] = json.loads(_to_json(dict(overrides)))
    preset = given.pop("preset", None)
    if preset is not None:  # first, so that single settings override it
        kept = {name: values["augment"][name] for name in ("crops", "early_size", "early_share")}
        values["augment"] = to_dict(view_preset(str(preset))) | kept
    lengths = [name for name in ("epochs", "steps", "budget") if given.get(name) is not None]
    if "budget" in lengths and len(lengths) > 1:
        raise ConfigError(f"a budget decides how long a run is: leave out either budget or {lengths[0]}")
    if lengths:
        values |= {"steps": None, "budget": None}
    backbone = _chosen(given, "model", "backbone")
    if backbone not in (None, values["model"]["backbone"]):
        arguments = values["model"].pop("backbone_args")
        if "resne" in str(backbone) and not str(backbone).startswith(_NO_RESNETS):  # also seresnext50, wide_resnet50_2
            values["model"]["backbone_args"] = {k: v for k, v in arguments.items() if k == "zero_init_last"}
        else:
            values["model"] |= {"backbone_args": {}, "stem": "auto", "stem_init": "timm"}
    name = _chosen(given, "loss", "name")
    if name not in (None, values["loss"]["name"]):
        values["loss"] = {"name": name}
        if name != "custom":
            values["model"] |= {f"projector_{field}": None for field in Projector._fields}
    for name, value in given.items():
        _merge(values, ("augment.crops.0.count" if name == "views" else name).split("."), value, name)
    return from_dict(values)


def _chosen(overrides: Mapping[str, Any], group: str, name: str) -> Any:
    """Override of a setting in a group, given by its dotted name or within the group; None if there is none."""
    values = overrides.get(group)
    return overrides.get(f"{group}.{name}", values.get(name) if isinstance(values, Mapping) else None)


@lru_cache
def _adapter(cls: Any) -> TypeAdapter[Any]:
    from pydantic import TypeAdapter

    for one in (PretrainConfig, ViewRecipe, Crop, ModelConfig, OptimConfig, *LOSS_CONFIGS.values()):
        one.__pydantic_config__ = {"extra": "forbid"}  # type: ignore[union-attr]
    return TypeAdapter(cls)


def _to_json(value: Any) -> str:
    """Settings as JSON; a ConfigError for values that no recipe can hold."""

    def plain(part: Any) -> Any:
        if dataclasses.is_dataclass(part) and not isinstance(part, type):
            return dataclasses.asdict(part)
        if isinstance(part, PathLike):
            return str(part)
        if hasattr(part, "item"):  # a NumPy or torch scalar
            return part.item()
        raise ConfigError(f"a setting cannot be a {type(part).__name__}, got {part!r}")

    try:
        text = json.dumps(value, default=plain, ensure_ascii=False)
        text.encode()
    except UnicodeEncodeError as error:
        raise ConfigError(f"a setting is not text in UTF-8, rename it: {error.object[: error.end][-40:]!r}") from None
    except (TypeError, ValueError, RecursionError) as error:  # keys that are no text, a list that contains itself
        raise ConfigError(f"settings must be plain values with names: {error}") from None
    return text


def _merge(node: Any, path: list[str], value: Any, name: str) -> None:
    """Set `value` at `path` below `node`, which is nested dicts and lists; `name` is the user's name for the path."""
    first, *rest = path
    key: Any = first
    if isinstance(node, list):
        if first not in map(str, range(len(node))):
            raise ConfigError(f"unknown setting {name!r}: {first!r} should be a number from 0 to {len(node) - 1}")
        key = int(first)
    inner = node[key] if isinstance(node, list) else node.get(key)
    if rest:
        if not isinstance(inner, (dict, list)):
            raise ConfigError(f"unknown setting {name!r}: there is no group {first!r}.{hint_at_setting(name)}")
        _merge(inner, rest, value, name)
    elif isinstance(value, Mapping) and isinstance(inner, dict) and key != "backbone_args":
        for part, given in value.items():
            _merge(inner, [str(part)], given, f"{name}.{part}")
    else:
        node[key] = value
