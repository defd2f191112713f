"""Weight files to export, without training."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from weight_files import Weights

import tiny
from ssole.models.backbone import create_encoder
from ssole.models.load import backbone_metadata


@pytest.fixture
def weights(tmp_path: Path) -> Weights:
    """Function that writes `backbone.safetensors` of the tiny settings with overrides."""
    torch.set_num_threads(1)

    def write(**overrides: Any) -> Path:
        config = tiny.config(**{"augment.mean": (0.4, 0.5, 0.6), "augment.std": (0.2, 0.3, 0.25), **overrides})
        backbone = create_encoder(config).backbone
        for module in backbone.modules():  # as after training
            if isinstance(module, torch.nn.BatchNorm2d):
                torch.nn.init.uniform_(module.running_mean, -0.1, 0.1)
                torch.nn.init.uniform_(module.running_var, 0.5, 1.5)
                torch.nn.init.uniform_(module.weight, 0.5, 1.5)
        path = tmp_path / "backbone.safetensors"
        save_file(backbone.state_dict(), path, metadata=backbone_metadata(config))
        return path

    return write
