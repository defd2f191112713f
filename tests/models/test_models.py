"""Backbones are timm's own, small images get a small stem, and weights come back as they were."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from ssole.config import ConfigError, ModelConfig, PretrainConfig
from ssole.models.backbone import create_backbone, create_encoder, create_projector, small_stem
from ssole.models.load import backbone_metadata, load, untrained
from ssole.training.checkpoint import save_backbone
from ssole.training.run import Run, create_run

TINY = ModelConfig(
    backbone="resnet18",
    backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]},
    projector_dim=8,
    projector_hidden=8,
)


@pytest.mark.parametrize(
    ("stem", "size", "kernel", "stride", "pooled"),
    [
        ("auto", 32, (3, 3), (1, 1), False),
        ("auto", 64, (3, 3), (1, 1), False),
        ("auto", 65, (7, 7), (2, 2), True),
        ("timm", 32, (7, 7), (2, 2), True),
        ("4x4", 224, (4, 4), (2, 2), False),
    ],
)
def test_stems(stem: str, size: int, kernel: tuple[int, int], stride: tuple[int, int], pooled: bool) -> None:
    model = create_backbone(ModelConfig(backbone="resnet18", stem=stem), size)  # type: ignore[arg-type]
    assert (model.conv1.kernel_size, model.conv1.stride) == (kernel, stride)  # type: ignore[union-attr]
    assert isinstance(model.maxpool, nn.Identity) is not pooled
    assert model(torch.zeros(2, 3, 33, 33)).shape == (2, 512)


def test_auto_leaves_other_networks_alone_and_a_small_stem_for_them_is_refused() -> None:
    vit = {"backbone": "vit_tiny_patch16_224", "backbone_args": {"img_size": 32, "patch_size": 8, "depth": 1}}
    model = create_backbone(ModelConfig(**vit), 32)  # type: ignore[arg-type]
    assert model(torch.zeros(2, 3, 32, 32)).shape == (2, 192)
    with pytest.raises(ConfigError, match="VisionTransformer"):
        create_backbone(ModelConfig(**vit, stem="3x3"), 32)  # type: ignore[arg-type]


def test_unknown_backbones_get_suggestions() -> None:
    with pytest.raises(ConfigError, match="resnet18"):
        create_backbone(ModelConfig(backbone="resnet_18"), 32)


@pytest.mark.parametrize(("layers", "linear"), [(0, []), (1, [(5, 3)]), (3, [(5, 7), (7, 7), (7, 3)])])
def test_projector_layers(layers: int, linear: list[tuple[int, int]]) -> None:
    projector = create_projector(ModelConfig(projector_layers=layers, projector_hidden=7, projector_dim=3), 5)
    found = [(m.in_features, m.out_features) for m in projector.modules() if isinstance(m, nn.Linear)]
    assert found == linear
    assert not [m for m in projector.modules() if isinstance(m, (nn.BatchNorm1d, nn.LayerNorm))]


def test_initial_weights_are_a_function_of_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (create_encoder(TINY, 32, seed=seed) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Run, nn.Module]:
    """A run folder with the weights of a network that is not at its start."""
    config = PretrainConfig(model=TINY, seed=4)
    run = create_run(tmp_path / "run", config)
    encoder = create_encoder(TINY, 32, seed=99)
    save_backbone(run, encoder.backbone, backbone_metadata(config))
    return run, encoder.backbone.eval()


def test_weights_load_strictly_into_a_plain_timm_model(saved: tuple[Run, nn.Module]) -> None:
    run, backbone = saved
    model = small_stem(timm.create_model("resnet18", num_classes=0, **TINY.backbone_args))
    model.load_state_dict(load_file(run.backbone_path), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model.eval()(images), backbone(images))


def test_a_network_with_timms_stem_needs_timm_alone(tmp_path: Path) -> None:
    config = PretrainConfig(model=ModelConfig(backbone="resnet10t"))
    run = create_run(tmp_path / "run", config)
    backbone = create_backbone(config.model, 32).eval()
    save_backbone(run, backbone, backbone_metadata(config))
    model = timm.create_model("resnet10t", num_classes=0).eval()
    model.load_state_dict(load_file(run.backbone_path), strict=True)
    images = torch.randn(2, 3, 32, 32)
    assert torch.equal(model(images), backbone(images))


def test_load_and_untrained(saved: tuple[Run, nn.Module]) -> None:
    run, backbone = saved
    images = torch.randn(2, 3, 32, 32)
    for place in (run, run.path, str(run.path), run.backbone_path):
        model = load(place)
        assert not model.training
        assert torch.equal(model(images), backbone(images))
    assert (model.image_size, model.num_features) == (32, 16)
    assert model.mean == PretrainConfig().augment.mean
    start = create_encoder(TINY, 32, seed=4).backbone.eval()
    assert torch.equal(untrained(run)(images), start(images))


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="there is no"):
        load(tmp_path / "nothing")
    with pytest.raises(ConfigError, match="not a run folder"):
        load(tmp_path)
    run = create_run(tmp_path / "run", PretrainConfig())
    with pytest.raises(ConfigError, match="not finished"):
        load(run)
    foreign = tmp_path / "foreign.safetensors"
    save_file({"x": torch.zeros(1)}, foreign, metadata={"other": json.dumps(1)})
    with pytest.raises(ConfigError, match="not written by ssole"):
        load(foreign)
    foreign.write_bytes(foreign.read_bytes()[:20])
    with pytest.raises(ConfigError, match="not a whole safetensors file"):
        load(foreign)
