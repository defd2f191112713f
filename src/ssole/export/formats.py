"""Writers of the formats: weights for timm, transformers and torchvision; programs for ONNX and torch.export.

timm loads a folder by `local-dir:PATH`, transformers the same one by `AutoModel`. Programs need no model code, and
normalise their input themselves.
"""

from __future__ import annotations

import io
import json
import shutil
import warnings
from collections.abc import Callable, Mapping, Sequence
from contextlib import redirect_stderr
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, TypeAlias

import torch
from torch import nn

from ssole.config import ConfigError
from ssole.evaluation.models import OnnxModel
from ssole.files import write_json_atomically, write_tensors_atomically
from ssole.models.load import LoadedBackbone
from ssole.models.timm_registry import NAME, register_with_timm, small_stem_kernel
from ssole.training.checkpoint import copies

_REASON = "timm itself has no ResNet with this first layer"
_LIKE_STOCK = ("fixed_input_size", "first_conv", "classifier")


class NormalisedBackbone(nn.Module):
    """Backbone that normalises its input itself: images (B, C, S, S) in [0, 1] to features (B, F)."""

    mean_C11: torch.Tensor
    std_C11: torch.Tensor

    def __init__(self, backbone: nn.Module, mean: Sequence[float], std: Sequence[float]) -> None:
        super().__init__()
        self.backbone = backbone
        self.register_buffer("mean_C11", torch.tensor(list(mean)).view(-1, 1, 1))
        self.register_buffer("std_C11", torch.tensor(list(std)).view(-1, 1, 1))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        features: torch.Tensor = self.backbone((images - self.mean_C11) / self.std_C11)
        return features


@dataclass(frozen=True, kw_only=True)
class Written:
    """Result of a writer: files, and how to read them."""

    features: Callable[[torch.Tensor], torch.Tensor]
    """The result as read back from the disk: images (B, C, S, S) in [0, 1] to features (B, F)."""
    snippet: str
    """Python code that reads the result, run in its folder."""
    needs: str
    """Packages that must be installed to read it."""
    input: str = "normalised images"
    """Description of the images that the result takes."""
    library: str | None = None
    """Name of the library in the card's header, by the Hugging Face Hub's list."""
    unchecked: str | None = None
    """Why the comparison did not read the result in the way of the snippet; None if it did."""


def preprocessing_of(model: LoadedBackbone) -> dict[str, Any]:
    """Preprocessing of a backbone as plain values, for files beside or within the weights."""
    return {
        "image_size": model.image_size,
        "channels": len(model.mean),
        "mean": list(model.mean),
        "std": list(model.std),
        "resize": "shorter side to image_size, bilinear with antialiasing, then the central square",
    }


def write_timm(model: LoadedBackbone, folder: Path) -> Written:
    """Write config.json and model.safetensors, and read them with timm."""
    import timm

    _write_folder(model, folder)
    register_with_timm()
    backbone = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    load = 'model = timm.create_model("local-dir:.", pretrained=True).eval()'
    features = NormalisedBackbone(backbone, model.mean, model.std)
    return Written(features=features, library="timm", **_how_to_read(model, "timm", "import timm", load))


def write_hf(model: LoadedBackbone, folder: Path) -> Written:
    """Write the files of :func:`write_timm`, and read them with transformers if it is installed, else with timm.

    transformers recognises timm's config.json and wraps the timm model.
    """
    load = 'model = AutoModel.from_pretrained(".").eval()  # features: model(images).pooler_output'
    how = _how_to_read(model, "transformers and timm", "from transformers import AutoModel", load)
    written = replace(write_timm(model, folder), **how)
    if find_spec("transformers") is None:
        return replace(written, unchecked="transformers is not installed, so it was read with timm")
    from transformers import AutoModel

    # a copy is read: it stays mapped, and Windows moves no folder of a mapped file, nor removes it
    with TemporaryDirectory(ignore_cleanup_errors=True) as copy, redirect_stderr(io.StringIO()):
        shutil.copytree(folder, copy, dirs_exist_ok=True)
        # with a progress bar, and remarks on a network that it does not know
        loaded: Any = NormalisedBackbone(AutoModel.from_pretrained(copy).eval(), model.mean, model.std)
    return replace(written, features=lambda images: loaded(images).pooler_output)


def _write_folder(model: LoadedBackbone, folder: Path) -> None:
    """Write config.json and model.safetensors.

    timm's own `save_for_hf` would copy tag, licence and papers of timm's pretrained weights into the config.
    """
    _save_weights(model, folder)
    kernel, settings = small_stem_kernel(model.backbone), model.config["model"]
    name, arguments = settings["backbone"].partition(".")[0], dict(settings["backbone_args"])
    stock, channels = model.backbone.pretrained_cfg, len(model.mean)
    assert isinstance(stock, Mapping)
    kept = {key: stock[key] for key in _LIKE_STOCK if key in stock}
    if channels != 3:
        arguments["in_chans"] = channels
        kept["first_conv"] = None  # else timm <= 1.0.30 would leave the layer so named random, as it has not 3 channels
    if kernel is not None:
        name, arguments = NAME, {"backbone": name, "stem": kernel, **arguments}
    config = {
        "architecture": name,
        "num_classes": 0,
        "num_features": model.num_features,
        "model_args": arguments,
        "pretrained_cfg": {  # by which timm makes its data transforms and loads weights
            "tag": "ssole",
            "input_size": [channels, model.image_size, model.image_size],
            "interpolation": "bilinear",
            "crop_pct": 1.0,
            "crop_mode": "center",
            "mean": list(model.mean),
            "std": list(model.std),
            "num_classes": 0,
            "pool_size": None,
            **kept,
        },
    }
    write_json_atomically(folder / "config.json", config, indent=2)


def _how_to_read(model: LoadedBackbone, libraries: str, imports: str, load: str) -> dict[str, Any]:
    """Fields `needs` and `snippet` of :class:`Written` for a folder that timm reads; small-image ResNets need ssole."""
    if small_stem_kernel(model.backbone) is not None:
        libraries += f", and ssole: {_REASON}"
        imports += "\nfrom ssole.export import register_with_timm"
        load = f"register_with_timm()  # {_REASON}\n{load}"
    return {"needs": libraries, "snippet": f"{imports}\n\n{load}"}


def write_torchvision(model: LoadedBackbone, folder: Path) -> Written:
    """Write model.safetensors and preprocessing.json, and read them with torchvision.

    torchvision and timm build the ResNets, ResNeXts and some others from the same layers with the same names. Where
    torchvision has no model of this name, or one of other layers, it is a ConfigError.
    """
    from safetensors.torch import load_file
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
    try:  # before the file is written and read: what an error holds of it would stay mapped, also when it is removed
        twin.load_state_dict(model.backbone.state_dict(), strict=True)
    except RuntimeError:
        raise _other_layers(model, name) from None
    _save_weights(model, folder)
    twin.load_state_dict(load_file(folder / "model.safetensors"), strict=True)
    write_json_atomically(folder / "preprocessing.json", preprocessing_of(model), indent=2)
    imports = ["from safetensors.torch import load_file", "from torch import nn", "from torchvision import models"]
    read = ['model.load_state_dict(load_file("model.safetensors"))', "model.eval()"]
    return Written(
        features=NormalisedBackbone(twin.eval(), model.mean, model.std),
        snippet="\n".join([*imports, "", *lines, *read]),
        needs="torchvision and safetensors",
    )


def _adapt_stem(twin: nn.Module, backbone: nn.Module) -> list[str]:
    """Give torchvision's model the first layer of the backbone. Returns the lines of code that do the same."""
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


def _save_weights(model: LoadedBackbone, folder: Path) -> None:
    """Write model.safetensors, under timm's names of the layers, which are torchvision's too."""
    write_tensors_atomically(folder / "model.safetensors", copies(model.backbone.state_dict())(), {"format": "pt"})


_KEY = "preprocessing"  # of the metadata of both kinds of programs
_ONNX_PACKAGES = ("onnx", "onnxruntime", "onnxscript")
_INPUT = "images in [0, 1]; it normalises them itself"
_READ_ONNX = f"""import json

import onnxruntime

session = onnxruntime.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
preprocessing = json.loads(session.get_modelmeta().custom_metadata_map["{_KEY}"])
# images: float32 (B, C, S, S); features: session.run(None, {{"images": images}})[0]"""
_READ_TORCH = f"""import torch

files = {{"{_KEY}.json": ""}}
model = torch.export.load("model.pt2", extra_files=files).module()
preprocessing = files["{_KEY}.json"]  # JSON"""


def write_onnx(model: LoadedBackbone, folder: Path) -> Written:
    """Write model.onnx, for any batch size, and read it with onnxruntime; `ConfigError` without the extra `export`."""
    missing = [name for name in _ONNX_PACKAGES if find_spec(name) is None]
    if missing:
        raise ConfigError(f"--to onnx needs {', '.join(missing)}: pip install 'ssole[export]'")
    path = folder / "model.onnx"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's remarks on itself; the comparison decides
        exported = torch.onnx.export(
            _program(model), dynamo=True, input_names=["images"], output_names=["features"], verbose=False
        )
    assert exported is not None
    exported.model.metadata_props[_KEY] = json.dumps(preprocessing_of(model))
    graph: Any = exported.model.graph
    for value in (*graph.inputs, *graph.outputs):
        value.shape[0] = "batch"  # the exporter invents a name
    exported.save(path, external_data=False)
    return Written(features=OnnxModel(path), snippet=_READ_ONNX, needs="onnxruntime", input=_INPUT)


def write_torch_export(model: LoadedBackbone, folder: Path) -> Written:
    """Write model.pt2, for any batch size, and read it with torch."""
    path, facts = folder / "model.pt2", json.dumps(preprocessing_of(model))
    file = io.BytesIO()  # on a full disk, torch would end the process
    torch.export.save(_program(model), file, extra_files={f"{_KEY}.json": facts})
    path.write_bytes(file.getbuffer())
    program = torch.export.load(path).module()
    return Written(features=program, snippet=_READ_TORCH, needs="torch", input=_INPUT)


def _program(model: LoadedBackbone) -> torch.export.ExportedProgram:
    graph = NormalisedBackbone(model.backbone, model.mean, model.std).eval()
    images = torch.rand(2, len(model.mean), model.image_size, model.image_size)  # 2, because 1 would become a constant
    return torch.export.export(graph, (images,), dynamic_shapes=({0: torch.export.Dim("batch")},))


Format: TypeAlias = Literal["timm", "torchvision", "onnx", "torch-export", "hf"]
FORMATS: dict[str, Callable[[LoadedBackbone, Path], Written]] = {
    "timm": write_timm,
    "torchvision": write_torchvision,
    "onnx": write_onnx,
    "torch-export": write_torch_export,
    "hf": write_hf,
}
