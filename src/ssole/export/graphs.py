"""Writers of ONNX and torch.export programs, which need no model code and normalise their input themselves."""

from __future__ import annotations

import io
import json
import warnings
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

from ssole.config import ConfigError
from ssole.evaluation.models import OnnxModel
from ssole.export.weights import NormalisedBackbone, Written, preprocessing_of
from ssole.models.load import LoadedBackbone

_KEY = "preprocessing"  # of the metadata of both formats
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
