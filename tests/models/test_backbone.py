"""Backbones, stems and projectors: shapes, initial weights, whitening, and refused models."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch
import yaml
from torch import nn

import tiny
from ssole.config import ConfigError, ModelConfig, PretrainConfig, Projector
from ssole.models.backbone import (
    checked_encoder,
    create_backbone,
    create_encoder,
    create_projector,
    small_stem,
    whiten_stem,
)

TINY = tiny.config().model


@pytest.mark.parametrize(
    ("stem", "size", "kernel", "stride", "pooled"),
    [
        ("auto", 32, (3, 3), (1, 1), False),
        ("auto", 64, (3, 3), (1, 1), False),
        ("auto", 65, (7, 7), (2, 2), True),
        ("timm", 32, (7, 7), (2, 2), True),
        ("4x4", 224, (4, 4), (2, 2), False),
        ("2x2", 32, (2, 2), (1, 1), False),
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
    projector = create_projector(Projector(layers, hidden=7, dim=3, norm="none"), 5)
    found = [(m.in_features, m.out_features) for m in projector.modules() if isinstance(m, nn.Linear)]
    assert found == linear
    assert not [m for m in projector.modules() if isinstance(m, (nn.BatchNorm1d, nn.LayerNorm))]


def test_initial_weights_are_a_function_of_the_seed_and_leave_the_generator_alone() -> None:
    torch.manual_seed(3)
    expected = torch.rand(2)
    torch.manual_seed(3)
    first, second, other = (create_encoder(PretrainConfig(model=TINY, seed=seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(2), expected)
    for a, b, c in zip(first.parameters(), second.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)
        assert a.ndim < 2 or not torch.equal(a, c)


def smooth_images(n: int) -> torch.Tensor:
    """Images whose neighbouring pixels and channels are strongly correlated, of variance near 1."""
    noise = torch.randn(n, 3, 40, 40, generator=torch.Generator().manual_seed(0)) + 0.1
    images = nn.functional.avg_pool2d(noise + noise.mean(1, keepdim=True), 9, stride=1)
    return images / images.std()


def test_whitened_outputs_are_white() -> None:
    images = smooth_images(300)
    conv = nn.Conv2d(3, 20, 4, stride=2, bias=False)
    whiten_stem(nn.Sequential(conv), images)
    responses = conv(images).transpose(0, 1).flatten(1).double()
    covariance = responses[:10] @ responses[:10].T / responses.shape[1]
    off = covariance - torch.diag(covariance.diagonal())
    assert off.abs().max() < 1e-3
    assert (covariance.diagonal() <= 1 + 1e-6).all()  # one, less where the direction has hardly more than the noise
    assert covariance[0, 0] > 0.98
    assert torch.equal(conv.weight[10:], -conv.weight[:10])


def test_whitening_leaves_channels_beyond_the_directions_of_patches() -> None:
    conv = nn.Conv2d(1, 7, 1, bias=False)
    before = conv.weight.detach().clone()
    images = torch.full((2, 1, 4, 4), 3.0)
    whiten_stem(conv, images)
    assert conv.weight[0].item() == pytest.approx(-conv.weight[1].item())
    assert abs(conv.weight[0].item()) == pytest.approx((9 + 0.01) ** -0.5)
    assert torch.equal(conv.weight[2:], before[2:])


def test_whitening_changes_only_the_stem_of_a_timm_resnet() -> None:
    model = small_stem(timm.create_model("resnet18", num_classes=0), kernel=4)
    before = {key: value.clone() for key, value in model.state_dict().items()}
    whiten_stem(model, smooth_images(20))
    assert [key for key, value in model.state_dict().items() if not torch.equal(value, before[key])] == ["conv1.weight"]


@pytest.mark.parametrize("model", [nn.Linear(3, 4), nn.Conv2d(1, 4, 3), nn.Conv2d(3, 3, 3, groups=3)])
def test_whitening_refuses_a_model_without_such_a_layer(model: nn.Module) -> None:
    with pytest.raises(ConfigError, match="starts with a convolution of its 3 channels"):
        whiten_stem(model, smooth_images(2))


def test_the_generators_of_a_user_stay_as_they_were(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("the generators of GPUs were seeded"))
    state = torch.get_rng_state()
    create_encoder(tiny.config())
    assert torch.equal(torch.get_rng_state(), state)


def test_a_backbone_is_tried_before_a_run() -> None:
    state = torch.get_rng_state()
    checked_encoder(tiny.config())
    checked_encoder(tiny.config(channels=5, preset="channels"))
    assert torch.equal(torch.get_rng_state(), state)
    with pytest.raises(ConfigError, match=r"backbone_args do not fit resnet18: .*depth"):
        checked_encoder(tiny.config(model__backbone_args={"depth": 3}))
    with pytest.raises(ConfigError, match="backbone_args do not fit resnet18"):
        checked_encoder(tiny.config(model__backbone_args={"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8, [8]]}))
    vit = {"model__backbone": "vit_tiny_patch16_224", "model__backbone_args": {"img_size": 8, "patch_size": 4}}
    crops = [{"count": 2, "size": 8}, {"count": 2, "size": 12}]
    with pytest.raises(ConfigError, match=r"vit_tiny_patch16_224 does not take images of 12 x 12 pixels: .*img_size"):
        checked_encoder(tiny.config(**vit, augment__crops=crops))


@pytest.mark.parametrize(
    ("sizes", "arguments"),
    [([12], {"img_size": 12}), ([8, 12], {"img_size": 12, "dynamic_img_size": True})],
)
def test_the_arguments_that_an_error_advises_make_a_transformer_take_the_images(
    sizes: list[int], arguments: dict[str, Any]
) -> None:
    small = {"patch_size": 4, "depth": 1, "embed_dim": 12, "num_heads": 2}
    settings: dict[str, Any] = {"model__backbone": "vit_tiny_patch16_224", "model__backbone_args": small}
    settings["augment__crops"] = [{"count": 2, "size": size} for size in sizes]
    with pytest.raises(ConfigError, match=r"\(224\)\. Choose .* model: (\{.*\})$") as raised:
        checked_encoder(tiny.config(**settings))
    advised = yaml.safe_load(str(raised.value).partition("model: ")[2])["backbone_args"]
    assert advised == arguments
    checked_encoder(tiny.config(**settings | {"model__backbone_args": small | advised}))


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("... DefaultCPUAllocator: can't allocate memory: ...")])
def test_too_little_memory_is_not_taken_for_a_wrong_argument(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def full(*_: object, **__: object) -> None:
        raise error

    monkeypatch.setattr(nn.Conv2d, "forward", full)
    with pytest.raises(type(error)):
        checked_encoder(tiny.config())
    monkeypatch.setattr(timm, "create_model", full)
    with pytest.raises(type(error)):
        checked_encoder(tiny.config(model__backbone_args={}))


def test_a_backbone_without_pooling_is_refused() -> None:
    arguments = {**tiny.config().model.backbone_args, "global_pool": ""}
    with pytest.raises(ConfigError, match=r"resnet18 gives \(1, .*\) for an image, where \(1, \d+\) is needed"):
        checked_encoder(tiny.config(model__backbone_args=arguments))
