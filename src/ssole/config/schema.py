"""Schema of the settings: frozen dataclasses that check their values on creation.

The docstring of a field is also its help on the command line: keep it to one line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from ssole.config.budget import budget_seconds
from ssole.config.losses import LossConfig, Projector, SSOLEConfig, check

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Group of views of one size: `count` random resized crops of each image."""

    count: int = 2
    """Views of each image in this group."""
    size: int = 32
    """Side of the square crop, in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's area, as a share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's aspect ratio (width over height) before it is resized to a square."""

    def __post_init__(self) -> None:
        check(self.count >= 1, f"crop count must be at least 1, got {self.count}")
        check(self.size >= 4, f"crop size must be at least 4 pixels, got {self.size}")
        check(0 < self.scale[0] <= self.scale[1] <= 1, f"crop scale must satisfy 0 < min <= max <= 1, got {self.scale}")
        check(0 < self.ratio[0] <= self.ratio[1], f"crop ratio must satisfy 0 < min <= max, got {self.ratio}")


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """Augmentation that makes the views of an image. Probabilities are per view; operations run in this order."""

    crops: tuple[Crop, ...] = (Crop(),)
    """Groups of crops. The first group gives the main views; `--views` sets its count."""
    hflip: float = 0.5
    """Probability of a left-right flip. Use 0 where left and right differ (digits, text)."""
    vflip: float = 0.0
    """Probability of an upside-down flip."""
    turn: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees (equally likely). Use 0.75 where no side is up."""
    jitter: float = 0.8
    """Probability of colour jitter: the next four operations, in random order."""
    brightness: float = 0.4
    """Strength b of brightness changes: the factor is drawn from [max(0, 1 - b), 1 + b]."""
    contrast: float = 0.4
    """Strength of contrast changes, with a factor as for brightness."""
    saturation: float = 0.4
    """Strength of saturation changes, with a factor as for brightness."""
    hue: float = 0.1
    """Strength h of hue changes: the shift is drawn from [-h, h] turns of the colour wheel; at most 0.5."""
    grey: float = 0.2
    """Probability that a view becomes grey."""
    blur: float = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of the crop."""
    solarize: float = 0.0
    """Probability of solarizing: values of 128/255 and more are inverted."""
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    """Mean of each channel of images in [0, 1], subtracted last. None: measured on the images when a run starts."""
    std: tuple[float, ...] | None = IMAGENET_STD
    """Standard deviation of each channel, the divisor after subtracting `mean`. None when `mean` is None."""

    def __post_init__(self) -> None:
        check(len(self.crops) >= 1, "a view recipe needs at least one crop group")
        for name in ("hflip", "vflip", "turn", "jitter", "grey", "blur", "solarize"):
            check(0 <= getattr(self, name) <= 1, f"{name} is a probability in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            check(getattr(self, name) >= 0, f"{name} must be at least 0, got {getattr(self, name)}")
        check(0 <= self.hue <= 0.5, f"hue must be in [0, 0.5], got {self.hue}")
        check(
            0 < self.blur_sigma[0] <= self.blur_sigma[1],
            f"blur_sigma must satisfy 0 < min <= max, got {self.blur_sigma}",
        )
        check(
            (self.mean is None) == (self.std is None), f"give both mean and std or neither, got {self.mean}, {self.std}"
        )
        if self.mean is not None and self.std is not None:
            check(min(self.std, default=0) > 0, f"std must be positive, got {self.std}")
            check(
                len(self.mean) == len(self.std),
                f"mean and std need a number for each channel, got {len(self.mean)} and {len(self.std)}",
            )

    @property
    def colour_operations(self) -> tuple[str, ...]:
        """Operations of the recipe that need red, green and blue."""
        jittered = tuple(name for name in ("saturation", "hue") if self.jitter > 0 and getattr(self, name) > 0)
        return jittered + (("grey",) if self.grey > 0 else ())

    @property
    def views(self) -> int:
        """Number of views of each image, over all crop groups."""
        return sum(crop.count for crop in self.crops)

    @property
    def image_size(self) -> int:
        """Side of the main crop in pixels, which is also the image size in evaluation."""
        return self.crops[0].size

    def main_views(self, count: int) -> ViewRecipe:
        """The recipe with `count` views of the main crop and no other crops: what label-free figures compare."""
        return replace(self, crops=(replace(self.crops[0], count=count),))

    @property
    def useful_size(self) -> int:
        """Shorter side, in pixels, beyond which an image has more detail than its crops can show.

        At this size, the smallest and narrowest crop has as many pixels as its view. Larger photographs are reduced to
        it when they are decoded, because a batch of photographs of many megapixels would take gigabytes.
        """
        return max(math.ceil(c.size / math.sqrt(c.scale[0] * min(c.ratio[0], 1 / c.ratio[1]))) for c in self.crops)


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """Encoder: a timm backbone and an MLP projector."""

    backbone: str = "resnet18"
    """Any timm model name."""
    backbone_args: dict[str, Any] = field(default_factory=dict)
    """Extra arguments of `timm.create_model`, such as `layers` or `channels` of a ResNet."""
    stem: Literal["auto", "timm", "2x2", "3x3", "4x4"] = "auto"
    """First layers of a ResNet: timm's (7x7, pooling), or a small convolution. `auto`: 3x3 up to 64 px, else timm's."""
    stem_init: Literal["timm", "whitening"] = "timm"
    """Initial weights of the first convolution: timm's random filters, or filters that whiten the first batch."""
    frozen_stages: int | None = None
    """Stages after the stem that keep their initial weights, with the stem; 0 for the stem alone. None: all train."""
    projector_dim: int | None = None
    """Embedding dimension D. None, here and below: as published for the loss."""
    projector_hidden: int | None = None
    """Width of the projector's hidden layers."""
    projector_layers: int | None = None
    """Number of linear layers of the projector; 0 for no projector."""
    projector_norm: Literal["none", "batch", "layer"] | None = None
    """Normalisation after each hidden layer of the projector. SSOLE's published one has none."""

    def __post_init__(self) -> None:
        layers, frozen = self.projector_layers, self.frozen_stages
        check(frozen is None or frozen >= 0, f"frozen_stages must be at least 0, got {frozen}")
        check(layers is None or 0 <= layers <= 100, f"projector_layers must be in [0, 100], got {layers}")
        for name in ("projector_dim", "projector_hidden"):
            value = getattr(self, name)
            check(value is None or 1 <= value <= 1 << 20, f"{name} must be positive and at most 2^20, got {value}")


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
    """Steps in which the learning rate rises to its peak."""
    weight_decay: float = 1e-5
    """Weight decay of weights with two or more dimensions; biases and norm scales have none."""
    momentum: float = 0.9
    """Momentum of SGD, LARS and Muon."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Betas of AdamW, and of Muon's one-dimensional parameters."""
    clip_grad_norm: float | None = None
    """Largest norm of the whole gradient; None (null in YAML) for no clipping."""
    layer_decay: float | None = None
    """Factor of the learning rate from each layer of the backbone to the one before it, in (0, 1]. None: one rate."""

    def __post_init__(self) -> None:
        check(0 < self.lr < math.inf, f"lr must be positive and finite, got {self.lr}")
        check(0 <= self.final_lr <= self.lr, f"final_lr must be in [0, lr = {self.lr}], got {self.final_lr}")
        check(self.warmup_steps >= 0, f"warmup_steps must be at least 0, got {self.warmup_steps}")
        check(self.weight_decay >= 0, f"weight_decay must be at least 0, got {self.weight_decay}")
        check(0 <= self.momentum < 1, f"momentum must be in [0, 1), got {self.momentum}")
        check(all(0 <= beta < 1 for beta in self.betas), f"betas must be in [0, 1), got {self.betas}")
        decay = self.layer_decay
        check(decay is None or 0 < decay <= 1, f"layer_decay must be in (0, 1], or None for one rate, got {decay}")
        clip = self.clip_grad_norm
        check(clip is None or clip > 0, f"clip_grad_norm must be positive, or None for no clipping, got {clip}")


@dataclass(frozen=True, kw_only=True)
class PretrainConfig:
    """Settings of a pretraining run."""

    data: str | tuple[str, ...] = "digits-m"
    """Images: `digits-m`, a folder, a list (.txt, .csv), tars, parquet, .npy, or a torchvision name like `cifar10`."""
    channels: int | None = None
    """Channels of images that are not photographs, kept at full depth (8 or 16 bits). None: RGB of 8 bits."""
    max_unreadable: float = 0.01
    """Largest share of unreadable images; a run stops above it. The run folder lists them in unreadable.jsonl."""
    cache_gb: float | None = None
    """Size limit of the disk cache of decoded images, in GB; 0 for no cache. None: half of the free space."""
    init: str | None = None
    """Weights to start from: a run, a .safetensors or .pth file, or `timm` (pretrained ones). None: random weights."""
    init_partial: bool = False
    """Load what fits of `init`, if not all weights of the backbone are there; without, that is an error."""
    epochs: int = 100
    """Number of passes over the images."""
    steps: int | None = None
    """Total number of optimizer steps, instead of epochs."""
    budget: str | None = None
    """Time of the whole run, such as 90s, 10m or 2h, instead of epochs; `steps` is then what was planned at first."""
    batch_size: int = 256
    """Images in one step, those of all processes together; each gives several views."""
    accumulate: int = 1
    """Parts of each batch that are embedded one after another, to save memory. The loss still sees the whole batch."""
    seed: int = 0
    """Seed of the initial weights, the order of images and the views."""
    device: str = "auto"
    """`auto` (CUDA if there is a GPU, else CPU), `cpu`, `cuda` or `cuda:N`."""
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    """Number format of the encoder; `auto`: bfloat16 where the hardware supports it. The loss has float32 or better."""
    compile: Literal["auto", "always", "never"] = "auto"
    """Compile the encoder (half a minute); `auto`: where it saves time (small images on a CPU, 500 steps or more)."""
    cuda_graph: Literal["auto", "always", "never"] = "auto"
    """Capture the whole step as one CUDA graph; `auto`: on an NVIDIA GPU, with Muon and images of one size."""
    deterministic: bool = False
    """Same result to the last bit on a CPU with as many threads, also after interruptions. A little slower."""
    guardian: Literal["auto", "off"] = "auto"
    """`auto`: a step that fails is tried again at lower learning rates, and a run that collapses is stopped."""
    checkpoint_every: int | None = None
    """Steps between checkpoints, in addition to those after epochs."""
    checkpoint_seconds: float = 60.0
    """Least time between checkpoints after epochs, in seconds; 0 for one after every epoch."""
    log_every: int = 10
    """Steps between lines of metrics.jsonl."""
    process_timeout: float = 300.0
    """Seconds after which one of many processes that gives no sign of life, or that others wait for, ends the run."""
    knn_every: int | None = None
    """Steps between measurements of kNN accuracy. Needs labels and a test split, which training does not see."""
    reasons: tuple[str, ...] = ()
    """Why these settings were chosen: written by runs without a recipe."""
    eval_data: str | tuple[str, ...] | None = None
    """Images to measure on while training, instead of `data`, at least once an epoch: kNN, or ranks without labels."""
    augment: ViewRecipe = field(default_factory=ViewRecipe)
    model: ModelConfig = field(default_factory=ModelConfig)
    loss: LossConfig = field(default_factory=SSOLEConfig)
    optim: OptimConfig = field(default_factory=OptimConfig)

    @property
    def input_channels(self) -> int:
        """Channels of the encoder's input: `channels`, or 3 for photographs."""
        return self.channels or 3

    @property
    def projector(self) -> Projector:
        """Shape of the projector: what `model` says, else what was published for the loss."""
        given = {name: getattr(self.model, f"projector_{name}") for name in Projector._fields}
        return self.loss.projector._replace(**{name: value for name, value in given.items() if value is not None})

    def __post_init__(self) -> None:
        for name in ("channels", "epochs", "steps", "accumulate", "checkpoint_every", "log_every", "knn_every"):
            value = getattr(self, name)
            check(value is None or value >= 1, f"{name} must be at least 1, got {value}")
        if self.budget is not None:
            budget_seconds(self.budget)
        check(-(1 << 63) <= self.seed < 1 << 64, f"seed must fit into 64 bits, got {self.seed}")
        given, wanted = self.augment.mean, self.input_channels
        check(
            given is None or len(given) == wanted,
            f"augment.mean and std need {wanted} numbers for channels = {self.channels}, got {given}: "
            "with null they are measured",
        )
        check(
            wanted == 3 or not self.augment.colour_operations,
            f"{' and '.join(self.augment.colour_operations)} need red, green and blue, and channels is {wanted}: "
            "set them to 0, or use the preset 'channels'",
        )
        seconds = self.checkpoint_seconds
        check(0 <= seconds < math.inf, f"checkpoint_seconds must be at least 0 and finite, got {seconds}")
        check(0 <= self.max_unreadable <= 1, f"max_unreadable is a share in [0, 1], got {self.max_unreadable}")
        check(
            self.cache_gb is None or 0 <= self.cache_gb < math.inf, f"cache_gb must be at least 0, got {self.cache_gb}"
        )
        check(
            0 < self.process_timeout < math.inf, f"process_timeout must be positive seconds, got {self.process_timeout}"
        )
        check(self.batch_size >= 2, f"batch_size must be at least 2, got {self.batch_size}: SSOLE spreads images apart")
        check(
            self.augment.views >= 2, f"at least 2 views of each image are needed, the recipe makes {self.augment.views}"
        )
