"""Schema of the settings: frozen dataclasses that check their values on creation.

The docstring of a field is also its help on the command line: keep it to one line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from ssole.config.budget import budget_seconds
from ssole.config.losses import LossConfig, Projector, SSOLEConfig
from ssole.config.view_recipe import ViewRecipe
from ssole.errors import check, check_non_negative


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
        check_non_negative("weight_decay", self.weight_decay)
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
    """Compile the encoder (half a minute); `auto`: where it pays (small images, bfloat16 CPU, 500 steps or more)."""
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
    """Images to measure on while training, by default once an epoch: kNN, or label-free figures without labels."""
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
        check_non_negative("checkpoint_seconds", self.checkpoint_seconds)
        check(0 <= self.max_unreadable <= 1, f"max_unreadable is a share in [0, 1], got {self.max_unreadable}")
        check_non_negative("cache_gb", self.cache_gb or 0.0)
        check(
            0 < self.process_timeout < math.inf, f"process_timeout must be positive seconds, got {self.process_timeout}"
        )
        check(self.batch_size >= 2, f"batch_size must be at least 2, got {self.batch_size}: SSOLE spreads images apart")
        check(
            self.augment.views >= 2, f"at least 2 views of each image are needed, the recipe makes {self.augment.views}"
        )
