"""Every setting of a run, as frozen dataclasses that check themselves once.

A field's docstring is also its help on the command line, where it reads best as a single line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
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
    turn: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees, each as likely. 0.75 where no side is up."""
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
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    """Channel means subtracted at the end (images in [0, 1]). None: measured on the images when a run starts."""
    std: tuple[float, ...] | None = IMAGENET_STD
    """Channel standard deviations divided by at the end. None with `mean`."""

    def __post_init__(self) -> None:
        _check(len(self.crops) >= 1, "a view recipe needs at least one crop group")
        for name in ("hflip", "vflip", "turn", "jitter", "grey", "blur", "solarize"):
            _check(0 <= getattr(self, name) <= 1, f"{name} is a probability in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            _check(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        _check(0 <= self.hue <= 0.5, f"hue must be in [0, 0.5], got {self.hue}")
        _check(
            0 < self.blur_sigma[0] <= self.blur_sigma[1],
            f"blur_sigma must satisfy 0 < min <= max, got {self.blur_sigma}",
        )
        _check(
            (self.mean is None) == (self.std is None), f"give both mean and std or neither, got {self.mean}, {self.std}"
        )
        if self.mean is not None and self.std is not None:
            _check(min(self.std, default=0) > 0, f"std must be positive, got {self.std}")
            _check(
                len(self.mean) == len(self.std),
                f"mean and std need a number for each channel, got {len(self.mean)} and {len(self.std)}",
            )

    @property
    def colour_operations(self) -> tuple[str, ...]:
        """What the recipe does that only red, green and blue allow."""
        jittered = tuple(name for name in ("saturation", "hue") if self.jitter > 0 and getattr(self, name) > 0)
        return jittered + (("grey",) if self.grey > 0 else ())

    @property
    def views(self) -> int:
        """Views of each image, over all crop groups."""
        return sum(crop.count for crop in self.crops)

    @property
    def image_size(self) -> int:
        """Size of the main crop, which is also the size used for evaluation."""
        return self.crops[0].size

    @property
    def useful_size(self) -> int:
        """The shorter side beyond which an image has no detail that a crop could use, in pixels.

        It is that of an image whose smallest and narrowest crop has as many pixels as the view made of it. Photographs
        of many megapixels are reduced to this, for a batch of them would take gigabytes.
        """
        return max(math.ceil(c.size / math.sqrt(c.scale[0] * min(c.ratio[0], 1 / c.ratio[1]))) for c in self.crops)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """The encoder: a timm backbone and an MLP projector."""

    backbone: str = "resnet18"
    """Any timm model name."""
    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Extra arguments of `timm.create_model`, such as `layers` or `channels` of a ResNet."""
    stem: Literal["auto", "timm", "3x3", "4x4"] = "auto"
    """Of a ResNet: timm's 7x7 and pooling, or one small convolution without. `auto` is 3x3 at 64 px or less."""
    stem_init: Literal["timm", "whitening"] = "timm"
    """Where the first convolution starts: at timm's random filters, or whitening patches of the first batch's views."""
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
    """Weight of spreading images apart (high rank) against bringing views together (low rank)."""
    gamma: float = 0.5
    """Share of the first of the two measures of spread, in [0, 1]."""
    form: Literal["cosine", "raw"] = "cosine"
    """Scaled as cosines, or the plain difference of nuclear norms."""
    low_rank_features: Literal["deviations", "raw"] = "deviations"
    """Ablation: `raw` takes the views themselves instead of their deviations from the mean."""
    detach_mean: bool = False
    """Ablation: hold the mean over views constant."""
    coupled: bool = False
    """Ablation: one high-rank term over all views of all images, as in OLE."""
    gradient: Literal["exact", "reference"] = "exact"
    """Ablation: `reference` has the published code's error in the gradient of the low-rank term."""

    def __post_init__(self) -> None:
        weight = self.high_rank_weight
        _check(0 <= weight < math.inf, f"high_rank_weight must be at least 0 and finite, got {weight}")
        _check(0 <= self.gamma <= 1, f"gamma must be in [0, 1], got {self.gamma}")


@dataclass(frozen=True, kw_only=True)
class OptimConfig:
    """Optimizer and learning-rate schedule: linear warmup, then cosine from `lr` to `final_lr`."""

    name: Literal["sgd", "lars", "adamw", "muon"] = "sgd"
    """Optimizer. Muon (orthogonalised momentum) learns several times faster in runs of minutes."""
    lr: float = 2.0
    """Peak learning rate."""
    final_lr: float = 0.002
    """Learning rate of the last step."""
    warmup_steps: int = 0
    """Steps over which the learning rate rises to its peak."""
    weight_decay: float = 1e-5
    """For weights of two or more dimensions only; biases and norm scales are left alone."""
    momentum: float = 0.9
    """For SGD, LARS and Muon."""
    betas: tuple[float, float] = (0.9, 0.999)
    """For AdamW, and for Muon's 1-d parameters."""
    clip_grad_norm: float | None = None
    """Largest norm of the whole gradient; None (null in YAML) switches clipping off."""

    def __post_init__(self) -> None:
        _check(0 < self.lr < math.inf, f"lr must be positive and finite, got {self.lr}")
        _check(0 <= self.final_lr <= self.lr, f"final_lr must be in [0, lr = {self.lr}], got {self.final_lr}")
        _check(self.warmup_steps >= 0, f"warmup_steps must be at least 0, got {self.warmup_steps}")
        _check(self.weight_decay >= 0, f"weight_decay must be at least 0, got {self.weight_decay}")
        _check(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")
        _check(all(0 <= beta < 1 for beta in self.betas), f"betas must be in [0, 1), got {self.betas}")
        clip = self.clip_grad_norm
        _check(clip is None or clip > 0, f"clip_grad_norm must be positive, or None for no clipping, got {clip}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Everything that defines a pretraining run."""

    data: str | tuple[str, ...] = "digits-m"
    """`digits-m`, a folder of images, a list (.txt, .csv), tars, parquet, .npy, or a torchvision name as `cifar10`."""
    channels: int | None = None
    """Channels of images that are no photographs, kept at full depth (8 or 16 bits). None: red, green, blue, 8 bits."""
    max_unreadable: float = 0.01
    """Share of the images that may turn out to be unreadable before a run stops; each is listed in the run folder."""
    cache_gb: float | None = None
    """Largest cache of decoded images on disk, 0 for none. Null (None): up to half of what is free."""
    epochs: int = 100
    """Passes over the images."""
    steps: int | None = None
    """Optimizer steps in all, instead of epochs."""
    batch_size: int = 256
    """Images in a step (each gives several views)."""
    seed: int = 0
    """Initial weights, order of images and views are functions of it."""
    device: str = "auto"
    """`auto` (CUDA where there is one, else CPU), `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Of the encoder; `auto` is bfloat16 where the hardware multiplies it natively. The loss has float32 or better."""
    compile: Literal["auto", "always", "never"] = "auto"
    """The encoder by `torch.compile`; `auto` where it repays the half minute it takes: small images, CPU, 500 steps."""
    deterministic: bool = False
    """Repeatable to the last bit on CPU with as many threads, also across interruptions. A little slower."""
    checkpoint_every: int | None = None
    """Also save a checkpoint every so many steps; one is saved after every epoch in any case."""
    log_every: int = 10
    """Write a line of metrics every so many steps."""
    knn_every: int | None = None
    """Steps between figures of kNN accuracy, where the data have labels and a test split; training sees neither."""
    augment: ViewRecipe = field(default_factory=ViewRecipe)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=LossConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    def __post_init__(self) -> None:
        _check(self.channels is None or self.channels >= 1, f"channels must be at least 1, got {self.channels}")
        given, wanted = self.augment.mean, self.channels or 3
        _check(
            given is None or len(given) == wanted,
            f"augment.mean and std need {wanted} numbers for channels = {self.channels}, got {given}: "
            "null has them measured",
        )
        _check(
            wanted == 3 or not self.augment.colour_operations,
            f"{' and '.join(self.augment.colour_operations)} need red, green and blue, and channels is {wanted}: "
            "set them to 0, or use the preset 'channels'",
        )
        _check(0 <= self.max_unreadable <= 1, f"max_unreadable is a share in [0, 1], got {self.max_unreadable}")
        _check(
            self.cache_gb is None or 0 <= self.cache_gb < math.inf, f"cache_gb must be at least 0, got {self.cache_gb}"
        )
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
