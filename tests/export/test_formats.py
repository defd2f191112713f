"""Each format: stock architectures, preprocessing, what it cannot hold, missing packages; and the shared parts."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import pytest
import timm
import torch
from safetensors.torch import load_file
from torch import nn
from weight_files import Weights

import ssole
from ssole.config import ConfigError
from ssole.export import formats
from ssole.export.formats import NormalisedBackbone, Written, preprocessing_of

MEAN, STD = (0.1, 0.5, 0.7), (0.5, 0.25, 2.0)
STOCK = {"model.stem": "timm", "augment.crops.0.size": 40, "model.backbone": "resnet18.a1_in1k"}


def test_images_are_normalised_channel_by_channel() -> None:
    images = torch.rand(2, 3, 4, 5)
    model = NormalisedBackbone(nn.Flatten(), MEAN, STD)
    expected = torch.empty(2, 3, 4, 5)
    for channel in range(3):
        expected[:, channel] = (images[:, channel] - MEAN[channel]) / STD[channel]
    torch.testing.assert_close(model(images), expected.flatten(1))
    middle = torch.tensor(MEAN).view(1, 3, 1, 1).expand(2, 3, 4, 5)
    assert torch.equal(model(middle), torch.zeros(2, 60))


def test_mean_and_std_are_no_weights_but_move_and_are_saved_with_them() -> None:
    model = NormalisedBackbone(nn.Linear(4, 2), [0.5], [0.25])
    assert [name for name, _ in model.named_parameters()] == ["backbone.weight", "backbone.bias"]
    state = model.state_dict()
    assert (state["mean_C11"].shape, state["std_C11"].tolist()) == ((1, 1, 1), [[[0.25]]])
    assert model.double().mean_C11.dtype == torch.float64
    assert not model.eval().backbone.training


@pytest.mark.parametrize("channels", [3, 4])
def test_preprocessing_is_that_of_the_loaded_backbone(weights: Weights, channels: int) -> None:
    colour = {} if channels == 3 else {"augment.saturation": 0, "augment.hue": 0, "augment.grey": 0}
    mean, std = (0.4, 0.5, 0.6, 0.7)[:channels], (0.2, 0.3, 0.25, 0.5)[:channels]
    source = weights(channels=channels, **colour, **{"augment.mean": mean, "augment.std": std})
    found = preprocessing_of(ssole.load(source))
    assert found == {
        "image_size": 8,
        "channels": channels,
        "mean": list(mean),
        "std": list(std),
        "resize": "shorter side to image_size, bilinear with antialiasing, then the central square",
    }
    assert json.loads(json.dumps(found)) == found  # lists, which JSON gives back as they are


def test_what_a_writer_leaves_out_is_that_images_are_normalised_before_and_all_was_checked() -> None:
    written = Written(features=nn.Identity(), snippet="", needs="torch")
    assert (written.input, written.library, written.unchecked) == ("normalised images", None, None)


# Folders for timm


def test_a_stock_architecture_needs_timm_alone(weights: Weights) -> None:
    source = weights(**STOCK, **{"model.backbone_args": {}})
    folder = ssole.export(source, to="timm")
    images = torch.randn(2, 3, 40, 40)
    expected = ssole.load(source)(images)
    whole = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    checkpoint = folder / "model.safetensors"
    by_path = timm.create_model("resnet18", num_classes=0, checkpoint_path=checkpoint).eval()
    for model in (whole, by_path):
        assert torch.equal(model(images), expected)
    assert "ssole" not in json.loads((folder / "config.json").read_text())["architecture"]
    assert "register_with_timm" not in (folder / "README.md").read_text()


def test_timm_finds_the_preprocessing(weights: Weights) -> None:
    folder = ssole.export(weights(**STOCK), to="timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True)
    found = timm.data.resolve_model_data_config(model)
    assert tuple(found["input_size"]) == (3, 40, 40)
    assert (tuple(found["mean"]), tuple(found["std"])) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.25))
    assert (found["interpolation"], found["crop_pct"], found["crop_mode"]) == ("bilinear", 1.0, "center")


def test_nothing_is_said_of_weights_that_timm_offers(weights: Weights) -> None:
    text = (ssole.export(weights(**STOCK), to="timm") / "config.json").read_text()
    for word in ("a1_in1k", "license", "hf_hub_id", "http"):
        assert word not in text


def test_a_vision_transformer_of_another_size(weights: Weights) -> None:
    arguments = {"img_size": 32, "depth": 1, "embed_dim": 12}
    settings = {"model.stem": "timm", "model.backbone": "vit_tiny_patch16_224", "model.backbone_args": arguments}
    source = weights(**settings, **{"augment.crops.0.size": 32})
    model = timm.create_model(f"local-dir:{ssole.export(source, to='timm')}", pretrained=True).eval()
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), ssole.load(source)(images))


def test_a_new_classifier_on_top(weights: Weights) -> None:
    folder = ssole.export(weights(**STOCK), to="timm")
    model = timm.create_model(f"local-dir:{folder}", pretrained=True, num_classes=7).eval()
    assert model(torch.randn(2, 3, 40, 40)).shape == (2, 7)
    trained = timm.create_model(f"local-dir:{folder}", pretrained=True)
    assert torch.equal(model.layer4[0].conv1.weight, trained.layer4[0].conv1.weight)


@pytest.mark.slow
def test_a_small_image_resnet_needs_registering(weights: Weights) -> None:
    folder = ssole.export(weights(), to="timm")
    code = f"import timm; timm.create_model('local-dir:{folder}', pretrained=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Unknown model (ssole_resnet)" in done.stderr
    assert "from ssole.export import register_with_timm" in (folder / "README.md").read_text()


# Weights for torchvision


def test_preprocessing_stands_beside_the_weights(weights: Weights) -> None:
    folder = ssole.export(weights(**{"model.backbone_args": {}}), to="torchvision")
    found = json.loads((folder / "preprocessing.json").read_text())
    assert (found["image_size"], found["mean"], found["std"]) == (8, [0.4, 0.5, 0.6], [0.2, 0.3, 0.25])


def test_another_family_of_the_same_layers(weights: Weights) -> None:
    settings = {"model.backbone": "densenet121", "model.stem": "timm", "model.backbone_args": {}}
    card = (
        ssole.export(weights(**settings, **{"augment.crops.0.size": 32}), to="torchvision") / "README.md"
    ).read_text()
    assert "model.classifier = nn.Identity()" in card


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({}, r"torchvision's resnet18 has other layers than timm's resnet18 with \{'channels': \[8, 8, 8, 16\]"),
        ({"model.backbone": "resnet26", "model.backbone_args": {}}, "torchvision has no model 'resnet26': --to timm"),
        (
            {
                "model.backbone": "efficientnet_b0",
                "model.stem": "timm",
                "model.backbone_args": {},
                "augment.crops.0.size": 32,
            },
            "torchvision's efficientnet_b0 has other layers",
        ),
    ],
)
def test_other_layers_are_refused(settings: dict[str, object], words: str, weights: Weights) -> None:
    source = weights(**settings)
    with pytest.raises(ConfigError, match=words):
        ssole.export(source, to="torchvision")
    assert not (source.parent / "export" / "torchvision").exists()
    assert "torchvision/model.safetensors" not in mapped()  # while the error is alive


def mapped() -> str:
    """Files that this process has mapped, where the system tells: Windows neither moves nor removes such files."""
    maps = Path("/proc/self/maps")
    return maps.read_text(encoding="utf-8") if maps.exists() else ""


@pytest.mark.parametrize("to", ["timm", "hf"])
def test_no_file_is_mapped_when_its_folder_is_moved(
    to: Literal["timm", "hf"], weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("transformers")
    move, moved = os.replace, []

    def note(old: str | Path, new: str | Path) -> None:
        if Path(old).is_dir():
            moved.append(f"{old}/" in mapped())
        move(old, new)

    monkeypatch.setattr("ssole.files.os.replace", note)
    ssole.export(weights(), to=to)
    assert moved == [False]


def test_tied_weights_are_written_twice(tmp_path: Path) -> None:
    """Safetensors refuses one tensor under two names, as CoaT has some."""
    first, second = nn.Linear(3, 3), nn.Linear(3, 3)
    second.weight = first.weight
    formats._save_weights(SimpleNamespace(backbone=nn.Sequential(first, second)), tmp_path)  # type: ignore[arg-type]
    saved = load_file(tmp_path / "model.safetensors")
    assert torch.equal(saved["0.weight"], saved["1.weight"])


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
    monkeypatch.setattr(formats, "find_spec", lambda name: None if name == "onnxruntime" else find_spec("json"))
    with pytest.raises(ConfigError, match=r"--to onnx needs onnxruntime: pip install 'ssole\[export\]'"):
        ssole.export(weights(), to="onnx")
