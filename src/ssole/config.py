"""Every setting of a run, as frozen dataclasses that check themselves once.

A recipe (YAML) fills a :class:`PretrainConfig`; the command line and Python override single fields by their dotted
names (``optim.lr``). The config of a run is written to its folder and is all that is needed to go on with it.
"""

from __future__ import annotations

import dataclasses
import difflib
import json
import types
import typing
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class ConfigError(ValueError):
    """A setting is unknown, of the wrong type or out of range; the message names it and what was meant."""


def _check(ok: bool, message: str) -> None:
    if not ok:
        raise ConfigError(message)


@dataclass(frozen=True, kw_only=True)
class Crop:
    """A group of views that share a size: `count` random resized crops of every image."""

    count: int = 2
    """Views of each image in this group."""
    size: int = 32
    """Side of the square crop, in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's share of the image area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's aspect ratio, width over height, before resizing to a square."""

    def __post_init__(self) -> None:
        _check(self.count >= 1, f"crop count must be at least 1, got {self.count}")
        _check(self.size >= 4, f"crop size must be at least 4 pixels, got {self.size}")
        _check(
            0 < self.scale[0] <= self.scale[1] <= 1, f"crop scale must satisfy 0 < min <= max <= 1, got {self.scale}"
        )
        _check(0 < self.ratio[0] <= self.ratio[1], f"crop ratio must satisfy 0 < min <= max, got {self.ratio}")


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """How views are made of an image. Probabilities are per view; the operations run in the order listed."""

    crops: tuple[Crop, ...] = (Crop(),)
    """Crop groups. The first gives the main views; `--views` sets its count."""
    hflip: float = 0.5
    """Probability of a left-right flip. 0 where handedness matters (digits, text)."""
    vflip: float = 0.0
    """Probability of an upside-down flip."""
    jitter: float = 0.8
    """Probability of colour jitter: the four operations below, in random order."""
    brightness: float = 0.4
    """Brightness factor is drawn from [max(0, 1 - b), 1 + b]."""
    contrast: float = 0.4
    """Contrast factor, as brightness."""
    saturation: float = 0.4
    """Saturation factor, as brightness."""
    hue: float = 0.1
    """Hue shift is drawn from [-h, h] turns of the colour wheel; at most 0.5."""
    grey: float = 0.2
    """Probability of turning grey."""
    blur: float = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of the crop."""
    solarize: float = 0.0
    """Probability of inverting all values of 128/255 and more."""
    mean: tuple[float, float, float] = IMAGENET_MEAN
    """Channel means subtracted at the end (images in [0, 1])."""
    std: tuple[float, float, float] = IMAGENET_STD
    """Channel standard deviations divided by at the end."""

    def __post_init__(self) -> None:
        _check(len(self.crops) >= 1, "a view recipe needs at least one crop group")
        for name in ("hflip", "vflip", "jitter", "grey", "blur", "solarize"):
            _check(0 <= getattr(self, name) <= 1, f"{name} is a probability in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            _check(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        _check(0 <= self.hue <= 0.5, f"hue must be in [0, 0.5], got {self.hue}")
        _check(
            0 < self.blur_sigma[0] <= self.blur_sigma[1],
            f"blur_sigma must satisfy 0 < min <= max, got {self.blur_sigma}",
        )
        _check(min(self.std) > 0, f"std must be positive, got {self.std}")

    @property
    def views(self) -> int:
        """Views of each image, over all crop groups."""
        return sum(crop.count for crop in self.crops)

    @property
    def image_size(self) -> int:
        """Size of the main crop, which is also the size used for evaluation."""
        return self.crops[0].size


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder: a timm backbone and an MLP projector."""

    backbone: str = "resnet18"
    """Any timm model name."""
    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Extra arguments of `timm.create_model`, such as `layers` or `channels` of a ResNet."""
    stem: Literal["auto", "timm", "3x3", "4x4"] = "auto"
    """First layer of a ResNet: timm's own (7x7 stride 2 and pooling), or for small images a 3x3 stride-1 or 4x4 stride-2
    convolution without pooling. `auto` is 3x3 for ResNets at 64 px or less and timm's otherwise."""
    projector_dim: int = 4096
    """Embedding dimension D."""
    projector_hidden: int = 4096
    """Width of the projector's hidden layers."""
    projector_layers: int = 3
    """Linear layers of the projector; 0 leaves it out."""
    projector_norm: Literal["none", "batch", "layer"] = "none"
    """Normalisation after each hidden layer of the projector. The released configuration has none."""

    def __post_init__(self) -> None:
        _check(self.projector_layers >= 0, f"projector_layers must be at least 0, got {self.projector_layers}")
        for name in ("projector_dim", "projector_hidden"):
            _check(getattr(self, name) >= 1, f"{name} must be positive, got {getattr(self, name)}")


@dataclass(frozen=True, kw_only=True)
class LossConfig:
    """The SSOLE loss; see :class:`ssole.SSOLELoss` for the meaning of each field."""

    high_rank_weight: float = 0.6
    gamma: float = 0.5
    form: Literal["cosine", "raw"] = "cosine"
    low_rank_features: Literal["deviations", "raw"] = "deviations"
    detach_mean: bool = False
    coupled: bool = False
    gradient: Literal["exact", "reference"] = "exact"

    def __post_init__(self) -> None:
        _check(self.high_rank_weight >= 0, f"high_rank_weight must be at least 0, got {self.high_rank_weight}")
        _check(0 <= self.gamma <= 1, f"gamma must be in [0, 1], got {self.gamma}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule: linear warmup, then cosine from `lr` to `final_lr`."""

    name: Literal["sgd", "lars", "adamw"] = "sgd"
    lr: float = 2.0
    final_lr: float = 0.002
    warmup_steps: int = 0
    weight_decay: float = 1e-5
    """Applied to weights of two or more dimensions only; biases and norm scales are left alone."""
    momentum: float = 0.9
    """For SGD and LARS."""
    betas: tuple[float, float] = (0.9, 0.999)
    """For AdamW."""
    clip_grad_norm: float | None = None
    """Largest norm of the whole gradient; null switches clipping off."""

    def __post_init__(self) -> None:
        _check(self.lr > 0, f"lr must be positive, got {self.lr}")
        _check(0 <= self.final_lr <= self.lr, f"final_lr must be in [0, lr = {self.lr}], got {self.final_lr}")
        _check(self.warmup_steps >= 0, f"warmup_steps must be at least 0, got {self.warmup_steps}")
        _check(self.weight_decay >= 0, f"weight_decay must be at least 0, got {self.weight_decay}")
        _check(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that defines a pretraining run."""

    data: str | tuple[str, ...] = "digits-m"
    """`digits-m`, a folder of images, Hugging Face style parquet (file or folder), or a torchvision name such as `cifar10`."""
    epochs: int = 100
    """Passes over the images. The schedule's length, unless `steps` is given."""
    steps: int | None = None
    """Optimizer steps in all; overrides `epochs`."""
    batch_size: int = 256
    """Images in a step (each gives several views)."""
    seed: int = 0
    """Initial weights, order of images and views are functions of it."""
    device: str = "auto"
    """`auto` (CUDA where there is one, else CPU), `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder. `auto` is bfloat16 autocast where the hardware multiplies it natively. The loss is float32 or better."""
    deterministic: bool = False
    """Bitwise repeatable on CPU, also across interruptions. A little slower."""
    checkpoint_every: int | None = None
    """Also save a checkpoint every so many steps (one is saved after every epoch in any case)."""
    log_every: int = 10
    """Write a line of metrics every so many steps."""
    knn_every: int | None = None
    """Every so many steps, measure kNN accuracy on the data's own test split, if it has one and labels. Training is
    unaffected: it never sees a label."""
    augment: ViewRecipe = field(default_factory=ViewRecipe)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        _check(self.epochs >= 1, f"epochs must be at least 1, got {self.epochs}")
        _check(self.steps is None or self.steps >= 1, f"steps must be at least 1, got {self.steps}")
        _check(
            self.batch_size >= 2, f"batch_size must be at least 2, got {self.batch_size}: SSOLE spreads images apart"
        )
        _check(
            self.checkpoint_every is None or self.checkpoint_every >= 1,
            f"checkpoint_every must be at least 1, got {self.checkpoint_every}",
        )
        _check(self.log_every >= 1, f"log_every must be at least 1, got {self.log_every}")
        _check(self.knn_every is None or self.knn_every >= 1, f"knn_every must be at least 1, got {self.knn_every}")
        _check(
            self.augment.views >= 2, f"at least 2 views of each image are needed, the recipe makes {self.augment.views}"
        )


def to_dict(config: Any) -> dict[str, Any]:
    """A config as plain dicts, lists and scalars, ready for YAML or JSON."""
    plain: dict[str, Any] = json.loads(json.dumps(dataclasses.asdict(config)))
    return plain


def from_dict(values: Mapping[str, Any]) -> PretrainConfig:
    """Build a config from nested plain values. Missing keys keep their defaults.

    Raises:
        ConfigError: an unknown key (with the closest known one), a value of the wrong type or out of range.
    """
    import pydantic

    _reject_unknown(values, PretrainConfig, "")
    try:
        # JSON strict mode: no "3" for 3 and no 1.5 for an integer, but lists may fill tuples
        return pydantic.TypeAdapter(PretrainConfig).validate_json(json.dumps(values), strict=True)
    except pydantic.ValidationError as error:
        lines = []
        for item in error.errors():
            name = ".".join(str(part) for part in item["loc"])
            lines.append(f"{name}: {item['msg']}, got {item['input']!r}" if name else item["msg"])
        raise ConfigError("; ".join(lines).replace("Value error, ", "")) from None


def apply_overrides(config: PretrainConfig, overrides: Mapping[str, Any]) -> PretrainConfig:
    """A copy of `config` with fields replaced.

    Args:
        overrides: dotted field names to values (``{"optim.lr": 1.0, "epochs": 5}``). ``views`` is short for the count of
            the first crop group. A dict value replaces only the fields it names. ``epochs`` without ``steps`` clears the
            recipe's own ``steps``, which would otherwise win.
    """
    values = to_dict(config)
    if "epochs" in overrides:
        values["steps"] = None
    for name, value in overrides.items():
        if name == "views":
            values["augment"]["crops"][0]["count"] = value
            continue
        _merge(values, name.split("."), _plain(value), name)
    return from_dict(values)


def load_recipe(name: str) -> dict[str, Any]:
    """The values of a recipe: a shipped name (see :func:`recipe_names`) or the path of a YAML file."""
    import yaml

    path = Path(name)
    if path.suffix not in {".yaml", ".yml"}:
        path = _recipe_folder() / f"{name}.yaml"
    if not path.is_file():
        raise ConfigError(
            f"no recipe {name!r}{_did_you_mean(name, recipe_names())} Shipped: {', '.join(recipe_names())}."
        )
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
    return Path(__file__).parent / "recipes"


def _plain(value: Any) -> Any:
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return to_dict(value)
    return str(value) if isinstance(value, Path) else value


def _merge(values: dict[str, Any], parts: list[str], value: Any, name: str) -> None:
    here = values
    for depth, part in enumerate(parts[:-1]):
        if not isinstance(here.get(part), dict):
            known = [path for path, _ in field_paths(PretrainConfig)]
            raise ConfigError(
                f"unknown setting {name!r}: {'.'.join(parts[: depth + 1])!r} is no group.{_did_you_mean(name, known)}"
            )
        here = here[part]
    if isinstance(value, Mapping) and isinstance(here.get(parts[-1]), dict) and parts[-1] != "backbone_args":
        for key, inner in value.items():
            _merge(here, [parts[-1], str(key)], inner, f"{name}.{key}")
    else:
        here[parts[-1]] = value


def _reject_unknown(values: Mapping[str, Any], cls: type, prefix: str) -> None:
    hints = typing.get_type_hints(cls)
    for key, value in values.items():
        if key not in hints:
            known = [path for path, _ in field_paths(PretrainConfig)]
            raise ConfigError(f"unknown setting {prefix + str(key)!r}.{_did_you_mean(prefix + str(key), known)}")
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


def _did_you_mean(name: str, known: list[str]) -> str:
    # a bare field name ("lr") should find its dotted home ("optim.lr"), and so should a typo of it ("larning_rate")
    tails = {path: path.rsplit(".", 1)[-1] for path in known}
    exact = [path for path, tail in tails.items() if tail == name]
    close = exact or difflib.get_close_matches(name, known, n=1, cutoff=0.6)
    if not close:
        match = difflib.get_close_matches(name.rsplit(".", 1)[-1], list(tails.values()), n=1, cutoff=0.6)
        close = [path for path, tail in tails.items() if match and tail == match[0]]
    return f" Did you mean {close[0]!r}?" if close else ""
