"""Folder that timm loads by `local-dir:PATH`, and Hugging Face transformers by `AutoModel`."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ssole.export.written import NormalisedBackbone, Written
from ssole.models.load import LoadedBackbone
from ssole.models.small_stem import NAME, register_with_timm, small_stem_kernel

_REASON = "timm itself has no ResNet with this first layer"
_LIKE_STOCK = ("fixed_input_size", "first_conv", "classifier")


def write_timm(model: LoadedBackbone, folder: Path) -> Written:
    """Write config.json and model.safetensors, and read them with timm."""
    import timm

    _write(model, folder)
    small = small_stem_kernel(model.backbone) is not None
    if small:
        register_with_timm()
    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    lines = ["import timm", 'model = timm.create_model("local-dir:.", pretrained=True).eval()']
    return Written(
        features=NormalisedBackbone(backbone, model.mean, model.std),
        snippet=_snippet(lines, small),
        needs=_needs("timm", small),
        library="timm",
    )


def write_hf(model: LoadedBackbone, folder: Path) -> Written:
    """Write the same files, and read them with transformers if it is installed, else with timm.

    transformers recognises timm's config.json and wraps the timm model.
    """
    written = write_timm(model, folder)
    lines = [
        "from transformers import AutoModel",
        'model = AutoModel.from_pretrained(".").eval()  # features: model(images).pooler_output',
    ]
    small = small_stem_kernel(model.backbone) is not None
    installed = find_spec("transformers") is not None
    return Written(
        features=_with_transformers(model, folder) if installed else written.features,
        snippet=_snippet(lines, small),
        needs=_needs("transformers and timm", small),
        library="timm",
        unchecked=None if installed else "transformers is not installed, so it was read with timm",
    )


def _write(model: LoadedBackbone, folder: Path) -> None:
    """Write both files.

    timm's own `save_for_hf` would copy tag, licence and papers of timm's pretrained weights into the config.
    """
    from safetensors.torch import save_file

    state = {name: tensor.contiguous() for name, tensor in model.backbone.state_dict().items()}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    kernel, settings = small_stem_kernel(model.backbone), model.config["model"]
    name, arguments = settings["backbone"].partition(".")[0], dict(settings["backbone_args"])
    if len(model.mean) != 3:
        arguments["in_chans"] = len(model.mean)
    if kernel is not None:
        name, arguments = NAME, {"backbone": name, "stem": kernel, **arguments}
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": _pretrained_cfg(model),
    }
    (folder / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")


def _pretrained_cfg(model: LoadedBackbone) -> dict[str, Any]:
    """Settings by which timm makes its data transforms and loads weights."""
    stock = model.backbone.pretrained_cfg
    assert isinstance(stock, Mapping)
    kept = {name: stock[name] for name in _LIKE_STOCK if name in stock}
    if len(model.mean) != 3:
        kept["first_conv"] = None  # else timm <= 1.0.30 would leave the layer so named random, as it has not 3 channels
    return {
        "tag": "ssole",
        "input_size": [len(model.mean), model.image_size, model.image_size],
        "interpolation": "bilinear",
        "crop_pct": 1.0,
        "crop_mode": "center",
        "mean": list(model.mean),
        "std": list(model.std),
        "num_classes": 0,
        "pool_size": None,
        **kept,
    }


def _with_transformers(model: LoadedBackbone, folder: Path) -> Callable[[torch.Tensor], torch.Tensor]:
    from transformers import AutoModel

    loaded: Any = NormalisedBackbone(AutoModel.from_pretrained(folder).eval(), model.mean, model.std)
    return lambda images: loaded(images).pooler_output


def _snippet(lines: list[str], small: bool) -> str:
    head, rest = lines[:1], lines[1:]
    if small:
        head.append("from ssole.export import register_with_timm")
        rest = [f"register_with_timm()  # {_REASON}", *rest]
    return "\n".join([*head, "", *rest])


def _needs(libraries: str, small: bool) -> str:
    return f"{libraries}, and ssole: {_REASON}" if small else libraries
