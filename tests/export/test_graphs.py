"""ONNX and torch.export: metadata, names and dynamic batch, missing packages."""

from __future__ import annotations

import json
from importlib.util import find_spec

import pytest
import torch
from weight_files import Weights

import ssole
from ssole.config import ConfigError
from ssole.export import graphs

PREPROCESSING = {"image_size": 8, "channels": 3, "mean": [0.4, 0.5, 0.6], "std": [0.2, 0.3, 0.25]}


def test_onnx_names_batch_and_metadata(weights: Weights) -> None:
    onnxruntime = pytest.importorskip("onnxruntime", reason="the extra export is not installed")
    folder = ssole.export(weights(), to="onnx")
    assert sorted(path.name for path in folder.iterdir()) == ["README.md", "model.onnx"]  # weights are inside
    session = onnxruntime.InferenceSession(folder / "model.onnx", providers=["CPUExecutionProvider"])
    (images,), (features,) = session.get_inputs(), session.get_outputs()
    assert (images.name, images.shape) == ("images", ["batch", 3, 8, 8])
    assert (features.name, features.shape) == ("features", ["batch", 16])
    found = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    assert PREPROCESSING.items() <= found.items()


def test_onnx_passes_its_checker(weights: Weights) -> None:
    onnx = pytest.importorskip("onnx", reason="the extra export is not installed")
    onnx.checker.check_model(ssole.export(weights(), to="onnx") / "model.onnx", full_check=True)


def test_preprocessing_travels_in_the_torch_program(weights: Weights) -> None:
    files = {"preprocessing.json": ""}
    torch.export.load(ssole.export(weights(), to="torch-export") / "model.pt2", extra_files=files)
    assert PREPROCESSING.items() <= json.loads(files["preprocessing.json"]).items()


def test_a_missing_package_names_the_extra(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(graphs, "find_spec", lambda name: None if name == "onnxruntime" else find_spec("json"))
    with pytest.raises(ConfigError, match=r"--to onnx needs onnxruntime: pip install 'ssole\[export\]'"):
        ssole.export(weights(), to="onnx")
