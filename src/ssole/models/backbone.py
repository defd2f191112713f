"""Encoder: a timm backbone, its stem for small images, and the projector."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import nn

from ssole import distributed
from ssole.config import ConfigError, ModelConfig, PretrainConfig, Projector
from ssole.errors import did_you_mean
from ssole.models.arguments import checked_arguments, require_room_for_weights, unfit_arguments
from ssole.models.custom import CustomBackbone, custom_name, is_custom, missing_module_error, network_errors
from ssole.models.stages import freeze_stages
from ssole.runtime import one_thread

SMALL_IMAGE = 64  # pixels: up to this side, a ResNet's 7x7 stride-2 stem and pooling leave too few positions


class Encoder(nn.Module):
    """Backbone and projector: images to embeddings. After training, only the backbone is kept.

    Shapes: images (N, C, S, S) -> features (N, F) from `.backbone` -> embeddings (N, D) from calling the encoder.
    Embeddings are not normalised; the loss does that.

    Attributes:
        frozen: names of modules that are not trained.
    """

    def __init__(self, backbone: nn.Module, projector: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone
        self.projector = projector
        self.frozen: tuple[str, ...] = ()

    def train(self, mode: bool = True) -> Encoder:
        """Training or evaluation mode. Frozen modules stay in evaluation mode."""
        super().train(mode)
        for name in self.frozen:
            self.get_submodule(name).eval()
        return self

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        embeddings: torch.Tensor = self.projector(self.backbone(images))
        return embeddings


@contextmanager
def seeded_weights(seed: int) -> Iterator[None]:
    """Context in which initial weights, drawn on the CPU, follow from a seed. torch's generators stay as they were.

    It is of :func:`ssole.runtime.one_thread`.
    """
    with one_thread(), torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)  # torch.manual_seed would also seed those of GPUs
        yield


def create_encoder(config: PretrainConfig, module: nn.Module | None = None) -> Encoder:
    """Encoder of a config at its initial weights, which the seed decides. torch's global generators stay as they were.

    `module` is the backbone of a config that records a custom one. A copy of it is used, with its own weights.
    """
    if module is not None and config.model.backbone != (name := custom_name(module)):
        raise ConfigError(f"the settings have the backbone {config.model.backbone!r}, and the module given is {name!r}")
    size, module = config.augment.image_size, copy.deepcopy(module)
    with seeded_weights(config.seed):
        backbone = create_backbone(config.model, size, channels=config.input_channels, module=module)
        encoder = Encoder(backbone, create_projector(config.projector, feature_dim(backbone)))
    if config.model.frozen_stages is not None:
        names = freeze_stages(backbone, config.model.frozen_stages)
        encoder.frozen = tuple(f"backbone.{name}" for name in names)
        encoder.train()
    return encoder


def create_backbone(
    config: ModelConfig, image_size: int, *, channels: int = 3, module: nn.Module | None = None
) -> nn.Module:
    """Backbone: images (B, channels, image_size, image_size) to pooled features (B, F). It is timm's, or the `module`.

    Raises:
        ConfigError: an unknown timm name (with similar ones), arguments that the network does not take, that are no
            plain values or that would need more than the memory, a small-image stem for a model that is no ResNet, or
            as :class:`ssole.models.custom.CustomBackbone`.
    """
    if module is not None:
        return CustomBackbone(module.cpu(), image_size, channels)
    if is_custom(config):
        raise missing_module_error(config)
    import timm

    if not timm.is_model(config.backbone):
        hint = did_you_mean(config.backbone, timm.list_models(), most=3) or " See timm.list_models()."
        raise ConfigError(f"timm has no model {config.backbone!r}.{hint}")
    arguments = checked_arguments(config)
    if channels != 3:  # passed only when needed, because some models do not take the argument
        arguments = {"in_chans": channels, **arguments}
    if arguments:
        require_room_for_weights(config.backbone, arguments)
    with network_errors(unfit_arguments(config.backbone)):  # timm passes them on
        model: nn.Module = timm.create_model(config.backbone, pretrained=False, num_classes=0, **arguments)
        if feature_dim(model) < 1:  # odd arguments, such as nested lists, may first be felt here
            raise ValueError("it would have no features")
    stem = config.stem
    if stem == "auto":
        stem = "3x3" if _has_resnet_stem(model) and image_size <= SMALL_IMAGE else "timm"
    if stem != "timm":
        small_stem(model, kernel=int(stem[0]))
    return model


@torch.no_grad()
def checked_encoder(config: PretrainConfig, module: nn.Module | None = None) -> Encoder:
    """Encoder of :func:`create_encoder`, after a trial of its backbone on one image of each crop size.

    A ConfigError as :func:`create_backbone`; also for arguments or image sizes that the model does not take.
    """
    name, channels, encoder = config.model.backbone, config.input_channels, create_encoder(config, module).eval()
    sizes = list(dict.fromkeys(crop.size for recipe in config.augment.parts for crop in recipe.crops))
    arguments = f"img_size: {max(sizes)}" + (", dynamic_img_size: true" if len(sizes) > 1 else "")
    advice = (
        "Choose another augment.crops.N.size or augment.early_size, or name what the model needs in a recipe (a YAML "
        f"file), for a Vision Transformer model: {{backbone_args: {{{arguments}}}}}"
    )
    with torch.random.fork_rng(devices=[]):
        for size in sizes:
            with network_errors(f"{name} does not take images of {size} x {size} pixels", advice):
                features = encoder.backbone(torch.zeros(1, channels, size, size))
            if features.shape != (1, feature_dim(encoder.backbone)):
                raise ConfigError(
                    f"{name} gives {tuple(features.shape)} for an image, where (1, {feature_dim(encoder.backbone)}) is "
                    "needed: leave arguments that change its pooling out of model.backbone_args"
                )
    return encoder.train()


def feature_dim(backbone: nn.Module) -> int:
    """Number of features F of a timm model without its classifier."""
    # MobileNets and others keep a layer between pooling and classifier, and their `num_features` is its input's width
    return int(getattr(backbone, "head_hidden_size", None) or backbone.num_features)  # type: ignore[arg-type]


def small_stem(model: nn.Module, kernel: int = 3) -> nn.Module:
    """Timm ResNet with a stem for small images, changed in place: 2x2 or 3x3 stride 1, or 4x4 stride 2; no pooling.

    ``small_stem(timm.create_model("resnet18", num_classes=0)).load_state_dict(...)`` loads the weights of a
    run on small images. A model that does not start like timm's ResNets is a ConfigError.
    """
    if not _has_resnet_stem(model):
        raise ConfigError(
            f"stem '{kernel}x{kernel}' needs a ResNet with timm's 7x7 stem, and {type(model).__name__} has another: "
            "use stem 'timm'"
        )
    old: nn.Conv2d = model.conv1  # type: ignore[assignment]
    stride, padding = {2: (1, 0), 3: (1, 1), 4: (2, 1)}[kernel]
    model.conv1 = nn.Conv2d(old.in_channels, old.out_channels, kernel, stride=stride, padding=padding, bias=False)
    nn.init.kaiming_normal_(model.conv1.weight, mode="fan_out", nonlinearity="relu")  # as timm initialises its own
    model.maxpool = nn.Identity()
    return model


def _has_resnet_stem(model: nn.Module) -> bool:
    conv = getattr(model, "conv1", None)
    return isinstance(conv, nn.Conv2d) and conv.kernel_size == (7, 7) and hasattr(model, "maxpool")


def create_projector(shape: Projector, features: int) -> nn.Module:
    """MLP from features to D dimensions, with ReLU between its layers."""
    if shape.layers == 0:
        return nn.Identity()
    norm = {"none": None, "batch": nn.BatchNorm1d, "layer": nn.LayerNorm}[shape.norm]
    layers: list[nn.Module] = []
    width = features
    for _ in range(shape.layers - 1):
        layers.append(nn.Linear(width, shape.hidden, bias=norm is None))
        if norm is not None:
            layers.append(norm(shape.hidden))
        layers.append(nn.ReLU(inplace=True))
        width = shape.hidden
    layers.append(nn.Linear(width, shape.dim))
    return nn.Sequential(*layers)


_EPS = 0.01  # added to variances of normalised pixels, so that noise is not amplified


@torch.no_grad()
def whiten_stem(backbone: nn.Module, images: torch.Tensor) -> None:
    """Whitening initialisation of the first convolution, in place: its outputs are uncorrelated, with variance 1.

    Patches of photographs are nearly smooth, so random filters respond to little more than their mean. These filters
    are the principal directions of the patches, each divided by its standard deviation, and their negatives (because a
    ReLU follows). Source: Page, "How to train your ResNet 8" (2019), and Jordan (2024, arXiv 2404.00498). Both keep the
    filters frozen; here training changes them.

    `images` are normalised floats (N, C, H, W); a few hundred are enough, and those of all processes are used. The
    first convolution of the backbone, in order of definition, must take them, or it is a ConfigError.
    """
    conv = next((module for module in backbone.modules() if isinstance(module, nn.Conv2d)), None)
    if conv is None or conv.in_channels != images.shape[1] or conv.groups != 1:
        raise ConfigError(
            f"stem_init 'whitening' needs a model that starts with a convolution of its {images.shape[1]} channels; "
            f"{type(backbone).__name__} starts with {conv}"
        )
    length, count = conv.weight[0].numel(), 0
    covariance = torch.zeros(length, length, dtype=torch.float64)
    for chunk in images.float().split(64):  # in chunks, because patches take many times the memory of their images
        # in float64, so that the sum does not depend on how the batch is divided
        patches = F.unfold(chunk, conv.kernel_size, stride=conv.stride).transpose(1, 2).flatten(0, 1).double()
        covariance += (patches.T @ patches).cpu()
        count += len(patches)
    covariance, count = distributed.all_reduce(covariance), distributed.world_size() * count
    variance, directions = torch.linalg.eigh(covariance / count)  # ascending
    chosen = min(conv.out_channels // 2, len(variance))
    filters = (directions / (variance.clamp(min=0) + _EPS).sqrt()).T.flip(0)[:chosen]
    filters = torch.cat([filters, -filters]).view(-1, *conv.weight.shape[1:])
    conv.weight[: len(filters)] = filters.to(conv.weight)  # any further output channels stay random
