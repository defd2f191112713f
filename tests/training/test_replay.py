"""Bundles of failed steps: the same value is not finite again, whatever the images, the network and the loss."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from ssole import api
from ssole.config import ConfigError
from ssole.data.arrays import ArraySource
from ssole.data.base import Source
from ssole.training.replay import replay
from ssole.training.watch import NonFiniteLossError

HUGE = {"optim__lr": 1e30, "optim__final_lr": 1e30}


class Assorted(Source):
    """Images of different sizes, decoded one by one."""

    name, labels, classes = "assorted", None, None

    def __len__(self) -> int:
        return tiny.IMAGES

    def id(self, i: int) -> str:
        return f"image {i}"

    def read(self, i: int) -> Any:
        return tiny.images()[i, : 9 + i % 4]


def bundle_of(tmp_path: Path, **settings: Any) -> Path:
    """Newest bundle of a run that fails."""
    with pytest.raises(NonFiniteLossError) as error:
        tiny.start(tmp_path / "run", **HUGE | settings)
    return tmp_path / "run" / "failures" / f"step-{error.value.step:08d}"


DROPOUT = {
    "backbone": "vit_tiny_patch16_224",
    "backbone_args": {
        "img_size": 8,
        "patch_size": 4,
        "depth": 1,
        "embed_dim": 16,
        "num_heads": 2,
        "proj_drop_rate": 0.3,
    },
    "projector_dim": 8,
    "projector_hidden": 8,
}
CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "images of different sizes": {"data": Assorted()},
    "smaller crops": {"augment__early_size": 6, "augment__early_share": 0.9},
    "dropout": {"model": DROPOUT, "loss__name": "vicreg"},
    "labels": {"data": ArraySource(tiny.images(), torch.arange(22).numpy() % 3), "loss__name": "supervised"},
    "whitened stem, clipped": {"model__stem_init": "whitening", "optim__clip_grad_norm": 1e30},
}


@pytest.mark.parametrize("settings", CASES.values(), ids=CASES)
def test_the_same_fails_again(tmp_path: Path, settings: dict[str, Any]) -> None:
    bundle = bundle_of(tmp_path, **settings)
    found = replay(bundle)
    facts = json.loads((bundle / "step.json").read_text())
    assert found.reproduced, found
    assert (found.step, found.recorded) == (facts["step"], facts["what"])
    assert found.notes == []


def poison(backbone: nn.Module) -> dict[str, float]:
    with torch.no_grad():
        backbone.layer3[0].conv1.weight[0, 0, 0, 0] = math.nan
    return {}


@pytest.mark.parametrize(("checkpoint_every", "expected"), [(4, "it left weights"), (5, "embeddings of shape")])
def test_the_layer_where_it_begins_is_named(tmp_path: Path, checkpoint_every: int, expected: str) -> None:
    """Weights that a step left, and that the next one starts with."""
    with pytest.raises(NonFiniteLossError) as error:
        tiny.start(tmp_path / "run", evaluators={4: poison}, checkpoint_every=checkpoint_every)
    found = replay(tmp_path / "run" / "failures" / f"step-{error.value.step:08d}")
    assert found.recorded.startswith(expected)
    assert found.reproduced
    assert found.weights == ["encoder.backbone.layer3.0.conv1.weight"]
    assert found.layers[0].startswith("encoder.backbone.layer3.0.conv1 ((8, 8, ")


def test_a_gradient_alone(tmp_path: Path) -> None:
    class Steep(nn.Module):
        """Finite, with an infinite slope."""

        def forward(self, z: torch.Tensor) -> torch.Tensor:
            return (z - z.detach()).square().sum().sqrt() + z.mean() * 0 + 1

    with pytest.raises(NonFiniteLossError, match="step 1: the norm of its gradient is nan"):
        api.pretrain(tiny.images(), recipe=tiny.recipe(tmp_path), out=tmp_path / "run", loss=Steep(), progress=False)
    bundle = tmp_path / "run" / "failures" / "step-00000001"
    found = replay(bundle, loss=Steep())
    assert found.reproduced
    assert found.gradients
    with pytest.raises(ConfigError, match="the loss is code from Python"):
        replay(bundle)


def test_finite_weights_are_told_to_be_so(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    tensors = load_file(bundle / "tensors.safetensors")
    healthy = {n: torch.randn_like(t) * 0.1 if t.is_floating_point() else t for n, t in tensors.items()}
    save_file(healthy, bundle / "tensors.safetensors")
    found = replay(bundle)
    assert (found.found, found.reproduced, found.layers) == (None, False, [])


def test_another_machine_is_told(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    facts = json.loads((bundle / "step.json").read_text())
    facts["device"], facts["environment"]["torch"] = "cuda:63", "1.0"
    (bundle / "step.json").write_text(json.dumps(facts))
    notes = replay(bundle).notes
    assert [note.partition(" in the run")[0] for note in notes] == ["torch: 1.0", "device: cuda:63"]


def test_what_is_no_bundle_or_a_damaged_one(tmp_path: Path) -> None:
    bundle = bundle_of(tmp_path)
    text, tensors = (bundle / "step.json").read_text(), (bundle / "tensors.safetensors").read_bytes()
    with pytest.raises(ConfigError, match="is no replay bundle"):
        replay(bundle.parent)
    for damaged, told in (
        ("{", "cannot be read"),
        ("{}", "damaged: look at step, what, epoch, lr"),
        (json.dumps(json.loads(text) | {"step": 2**70}), "damaged: look at step$"),
        (json.dumps(json.loads(text) | {"epoch": -1}), "damaged: look at epoch$"),
        (text.replace('"resnet18"', '"resnet"'), "resnet"),
        (text.replace('"projector_dim": 8', '"projector_dim": 9'), "does not hold the weights of its settings"),
    ):
        (bundle / "step.json").write_text(damaged)
        with pytest.raises(ConfigError, match=told):
            replay(bundle)
    (bundle / "step.json").write_text(text)
    (bundle / "tensors.safetensors").write_bytes(tensors[:100])
    with pytest.raises(ConfigError, match=r"tensors\.safetensors cannot be read"):
        replay(bundle)
    whole = load_file_of(tensors, tmp_path)
    for changed in (
        {"ids": torch.empty(0)},
        {"ids": torch.arange(4)[:, None]},
        {"images": whole["images"][:, :2]},
        {"images": whole["images"].float()},
    ):
        save_file({name: t.contiguous() for name, t in (whole | changed).items()}, bundle / "tensors.safetensors")
        with pytest.raises(ConfigError, match="is damaged: its images and their indices"):
            replay(bundle)


def load_file_of(data: bytes, folder: Path) -> dict[str, torch.Tensor]:
    (folder / "copy.safetensors").write_bytes(data)
    return load_file(folder / "copy.safetensors")


class Overflowing(nn.Module):
    """A backbone whose features overflow from the third training step on."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3)
        self.register_buffer("steps", torch.zeros(()))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        if self.training:
            self.steps += 1
        return self.conv(images) / (self.steps < 3).float()


def test_a_run_with_a_backbone_of_ones_own(tmp_path: Path) -> None:
    with pytest.raises(NonFiniteLossError, match=r"replay\(Path\('.*step-00000003'\), backbone=module\) in Python"):
        api.pretrain(
            tiny.images(), recipe=tiny.recipe(tmp_path), out=tmp_path / "run", backbone=Overflowing(), progress=False
        )
    bundle = tmp_path / "run" / "failures" / "step-00000003"
    assert replay(bundle, backbone=Overflowing()).reproduced
    with pytest.raises(ConfigError, match="the backbone is code from Python"):
        replay(bundle)
