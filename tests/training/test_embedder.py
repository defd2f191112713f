from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ranks
import tiny
from ssole import distributed
from ssole.config import ConfigError, PretrainConfig, apply_overrides
from ssole.losses import LeJEPALoss, SSOLELoss
from ssole.models.custom import CustomBackbone, custom_settings
from ssole.rng import Use, scalar_bits
from ssole.training.checkpoint import snapshot
from ssole.training.embedder import Embedder, _may_differ
from ssole.training.run import Run
from ssole.training.step import Learner

CPU = torch.device("cpu")
ARGUMENTS = {"img_size": 8, "patch_size": 4, "embed_dim": 16, "depth": 2, "num_heads": 2}
VIT: dict[str, Any] = {"model__backbone": "vit_tiny_patch16_224", "model__backbone_args": ARGUMENTS}
STEP = 3


def embedder(**overrides: Any) -> Embedder:
    with ranks.double():
        return Embedder(tiny.config(batch_size=8, **overrides), CPU)


def views() -> list[torch.Tensor]:
    random = torch.Generator().manual_seed(1)
    return [torch.randn(8, count, 3, 8, 8, generator=random) for count in (2, 1)]


def gradients(model: Embedder) -> dict[str, torch.Tensor]:
    return {name: parameter.grad.clone() for name, parameter in model.encoder.named_parameters()}


def taken(model: Embedder, loss: torch.nn.Module) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Loss and gradients of a step."""
    with ranks.double():
        model.seed(STEP)
        value = loss(model.embed(views(), STEP))
        value.backward()
        model.finish_backward()
    return value.detach(), gradients(model)


@pytest.mark.parametrize("loss", [SSOLELoss(), LeJEPALoss(slices=4)])
@pytest.mark.parametrize("parts", [2, 4])
def test_parts_give_loss_and_gradient_of_the_whole_batch(loss: torch.nn.Module, parts: int) -> None:
    value, grads = taken(embedder(**VIT), loss)
    other, others = taken(embedder(**VIT, accumulate=parts), loss)
    torch.testing.assert_close(other, value, rtol=1e-12, atol=1e-12)
    for name, grad in grads.items():
        torch.testing.assert_close(others[name], grad, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize(
    "kind", [{}, {**VIT, "model__backbone_args": {**VIT["model__backbone_args"], "drop_rate": 0.5}}]
)
def test_both_passes_see_the_same_network(kind: dict[str, Any]) -> None:
    """With batch norm, of which each part has its own, and with dropout. One graph over all parts is the oracle."""
    model, oracle = embedder(**kind, accumulate=2), embedder(**kind)
    value, grads = taken(model, SSOLELoss())
    with ranks.double():
        z = []
        for k, part in enumerate(zip(*(group.chunk(2) for group in views()), strict=True)):
            torch.manual_seed(scalar_bits(tiny.config().seed, STEP, Use.LAYERS) + k)
            z.append(oracle(list(part)))
        expected = SSOLELoss()(torch.cat(z))
        expected.backward()
    assert torch.equal(value, expected)
    for name, grad in gradients(oracle).items():
        torch.testing.assert_close(grads[name], grad, rtol=1e-9, atol=1e-12)
    for (name, ours), theirs in zip(model.encoder.named_buffers(), oracle.encoder.buffers(), strict=True):
        assert torch.equal(ours, theirs), name


def test_a_whole_run_in_parts(tmp_path: Path) -> None:
    for parts in (1, 2):
        with ranks.double():
            tiny.start(tmp_path / str(parts), batch_size=8, accumulate=parts, **VIT)
    one, two = (load_file(Run(tmp_path / name).backbone_path) for name in "12")
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-9, atol=1e-9)


def shares(folder: Path) -> None:
    with ranks.double():
        tiny.start(folder / "two", batch_size=8, accumulate=2, process_timeout=60.0, **VIT)


@pytest.mark.slow
def test_parts_on_two_processes(tmp_path: Path) -> None:
    ranks.run(2, shares, tmp_path)
    with ranks.double():
        tiny.start(tmp_path / "one", batch_size=8, **VIT)
    one, two = (load_file(Run(tmp_path / name).backbone_path) for name in ("one", "two"))
    for name in one:
        torch.testing.assert_close(two[name], one[name], rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize(("batch", "parts"), [(8, 3), (4, 4)])
def test_parts_that_do_not_divide_a_batch_are_refused(tmp_path: Path, batch: int, parts: int) -> None:
    with pytest.raises(ConfigError, match=f"a batch of {batch} images cannot be divided equally among {parts} parts"):
        tiny.start(tmp_path / "run", batch_size=batch, accumulate=parts)
    assert not (tmp_path / "run").exists()
    with pytest.raises(ConfigError, match="accumulate must be at least 1"):
        PretrainConfig(accumulate=0)


class Spare(nn.Module):
    """A backbone with a weight that its features do not depend on, as models of other libraries have."""

    def __init__(self) -> None:
        super().__init__()
        self.spare, self.used = nn.Linear(5, 6), nn.Linear(3, 4)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.used(images.mean(dim=(2, 3)))


def learn(folder: Path) -> None:
    config = apply_overrides(tiny.config(), custom_settings(Spare()))
    with distributed.processes(60.0):
        learner = Learner(config, CPU, backbone=Spare())
        images = torch.from_numpy(tiny.images(2)).permute(0, 3, 1, 2).contiguous()
        learner.step(images, torch.arange(2) + 2 * distributed.rank(), epoch=0, lr=0.1)
        state = snapshot(learner.modules, learner.optimizer)()
        shapes = {name: list(tensor.shape) for name, tensor in state.items()}
        if distributed.rank() == 0:
            (folder / f"{distributed.world_size()}.json").write_text(json.dumps(shapes))


def test_an_unused_weight_keeps_its_place_in_the_optimizer_on_many_processes(tmp_path: Path) -> None:
    """Or the state of a run that was stopped on two processes would go to other weights on one."""
    for world in (1, 2):
        ranks.run(world, learn, tmp_path)
    one, two = (json.loads((tmp_path / f"{world}.json").read_text()) for world in (1, 2))
    assert one == two


class Volume(nn.Module):
    """A network with a convolution over channels, whose weight has five dimensions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.plain = nn.Conv3d(1, 4, 3), nn.Conv2d(4, 4, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.plain(self.conv(images[:, None]).squeeze(2))


def test_weights_of_five_dimensions() -> None:
    config = apply_overrides(tiny.config(batch_size=8), custom_settings(Volume()))
    model = Embedder(config, CPU, Volume())
    assert model.encoder.backbone.module.plain.weight.is_contiguous(memory_format=torch.channels_last)
    model.seed(STEP)
    assert model.embed(views(), STEP).shape == (8, 3, 8)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_loss_alone_learns_on_a_frozen_encoder(parts: int) -> None:
    frozen = {"model__frozen_stages": 4, "model__projector_layers": 0, "accumulate": parts, "batch_size": 8}
    learner = Learner(tiny.config(loss__name="supervised", **frozen), CPU, labels=np.arange(22) % 3)
    images = torch.from_numpy(tiny.images()).permute(0, 3, 1, 2)[:8]
    before = {name: tensor.clone() for name, tensor in learner.modules.state_dict().items()}
    learner.step(images, torch.arange(8), epoch=0, lr=0.1)
    changed = {name for name, tensor in learner.modules.state_dict().items() if not torch.equal(tensor, before[name])}
    assert {name.split(".")[0] for name in changed} == {"loss"}


def test_only_buffers_that_the_backbone_itself_writes_may_differ_between_processes() -> None:
    plain = nn.Sequential(nn.Flatten(), nn.Linear(192, 4), nn.BatchNorm1d(4))
    assert not _may_differ(CustomBackbone(plain, 8, 3))
    plain.register_buffer("calls", torch.zeros(()))
    assert _may_differ(CustomBackbone(plain, 8, 3))
    assert not _may_differ(Embedder(tiny.config(), CPU).encoder.backbone)
