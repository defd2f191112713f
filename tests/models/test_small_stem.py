"""Small-image ResNets in timm's registry."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from weight_files import Weights

import ssole
from ssole.export import register_with_timm
from ssole.export.small_stem import NAME, small_stem_kernel
from ssole.models.backbone import small_stem


@pytest.mark.parametrize(("stem", "kernel"), [("2x2", 2), ("3x3", 3), ("4x4", 4), ("timm", None)])
def test_kernel_of_the_stem(stem: str, kernel: int | None, weights: Weights) -> None:
    assert small_stem_kernel(ssole.load(weights(**{"model.stem": stem})).backbone) == kernel


def test_timm_makes_the_same_network(weights: Weights) -> None:
    register_with_timm()
    register_with_timm()  # again is no error
    found = timm.create_model(NAME, backbone="resnet18", stem=3, num_classes=0, pretrained_cfg={"num_classes": 0})
    expected = small_stem(timm.create_model("resnet18", num_classes=0))
    found.load_state_dict(expected.state_dict(), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(found.eval()(images), expected.eval()(images))


def test_without_registering_timm_refuses_the_folder(weights: Weights) -> None:
    folder = ssole.export(weights(), to="timm")
    code = f"import timm; timm.create_model('local-dir:{folder}', pretrained=True)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "Unknown model (ssole_resnet)" in done.stderr
    assert "from ssole.export import register_with_timm" in (Path(folder) / "README.md").read_text()
