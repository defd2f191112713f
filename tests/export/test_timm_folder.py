"""Folders for timm: stock architectures in one line, preprocessing, no claim of timm's own weights."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest
import timm
import torch
from weight_files import Weights

import ssole

STOCK = {"model.stem": "timm", "augment.crops.0.size": 40, "model.backbone": "resnet18.a1_in1k"}


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
