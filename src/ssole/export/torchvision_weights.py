"""Weights under torchvision's names."""

from __future__ import annotations

import json
from pathlib import Path

from torch import nn

from ssole.config import ConfigError
from ssole.export.written import NormalisedBackbone, Written, preprocessing_of
from ssole.models.load import LoadedBackbone
from ssole.models.small_stem import small_stem_kernel


def write_torchvision(model: LoadedBackbone, folder: Path) -> Written:
    """Write model.safetensors and preprocessing.json, and read them with torchvision.

    torchvision and timm build the ResNets, ResNeXts and some others from the same layers with the same names.

    Raises:
        ConfigError: torchvision has no model of this name, or one of other layers.
    """
    from safetensors.torch import load_file, save_file
    from torchvision import models

    name = model.config["model"]["backbone"].partition(".")[0]
    head = str(model.backbone.pretrained_cfg.get("classifier"))  # type: ignore[union-attr,operator]
    if name not in models.list_models(models):
        raise ConfigError(f"torchvision has no model {name!r}: --to timm exports any backbone")
    twin = models.get_model(name, weights=None)
    if not hasattr(twin, head):
        raise _other_layers(model, name)
    setattr(twin, head, nn.Identity())
    lines = [f"model = models.{name}()", f"model.{head} = nn.Identity()", *_adapt_stem(twin, model.backbone)]
    state = {key: tensor.contiguous() for key, tensor in model.backbone.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    try:
        twin.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    except RuntimeError:
        raise _other_layers(model, name) from None
    text = json.dumps(preprocessing_of(model), indent=2) + "\n"
    (folder / "preprocessing.json").write_text(text, encoding="utf-8")
    imports = ["from safetensors.torch import load_file", "from torch import nn", "from torchvision import models"]
    read = ['model.load_state_dict(load_file("model.safetensors"))', "model.eval()"]
    return Written(
        features=NormalisedBackbone(twin.eval(), model.mean, model.std),
        snippet="\n".join([*imports, "", *lines, *read]),
        needs="torchvision and safetensors",
    )


def _adapt_stem(twin: nn.Module, backbone: nn.Module) -> list[str]:
    """Give torchvision's model the first layer of the backbone; the lines of code that do the same."""
    conv, lines = getattr(backbone, "conv1", None), []
    if isinstance(conv, nn.Conv2d) and isinstance(getattr(twin, "conv1", None), nn.Conv2d):
        kernel, stride, padding = conv.kernel_size[0], conv.stride[0], int(conv.padding[0])
        if (conv.in_channels, kernel) != (3, 7):
            channels = conv.in_channels, conv.out_channels
            twin.conv1 = nn.Conv2d(*channels, kernel, stride=stride, padding=padding, bias=False)
            given = f"{channels[0]}, {channels[1]}, {kernel}, stride={stride}, padding={padding}, bias=False"
            lines.append(f"model.conv1 = nn.Conv2d({given})")
    if small_stem_kernel(backbone) is not None:
        twin.maxpool = nn.Identity()
        lines.append("model.maxpool = nn.Identity()")
    return lines


def _other_layers(model: LoadedBackbone, name: str) -> ConfigError:
    given = model.config["model"]["backbone_args"]
    why = f" with {given}" if given else ""
    return ConfigError(f"torchvision's {name} has other layers than timm's {name}{why}: --to timm exports any backbone")
