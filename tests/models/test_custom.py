"""Custom modules as backbones: what they may return, training, resuming, loading."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import ssole
import tiny
from ssole import api
from ssole.config import ConfigError, apply_overrides
from ssole.models.backbone import create_encoder
from ssole.models.custom import CustomBackbone, custom_settings
from ssole.training.run import Run


class Crash(Exception):
    pass


def crash(backbone: nn.Module) -> dict[str, float]:
    raise Crash


class Small(nn.Module):
    """Maps of 6 channels, with batch norm and dropout; `form` is what it returns."""

    def __init__(self, form: Callable[[torch.Tensor], Any] = lambda maps: maps.mean(dim=(2, 3)), seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Conv2d(3, 6, 3), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout(0.2))
        self.form = form

    def forward(self, images: torch.Tensor) -> Any:
        return self.form(self.layers(images))


@dataclass
class ModelOutput:
    """Stand-in for what models of transformers return."""

    last_hidden_state: torch.Tensor
    pooler_output: torch.Tensor | None = None


def tokens(maps: torch.Tensor) -> torch.Tensor:
    return maps.flatten(2).transpose(1, 2)


FORMS: dict[str, tuple[Callable[[torch.Tensor], Any], Callable[[torch.Tensor], torch.Tensor]]] = {
    "maps": (lambda x: x, lambda x: x.mean(dim=(2, 3))),
    "pooler output": (lambda x: ModelOutput(tokens(x), x[:, :, 0, 0]), lambda x: x[:, :, 0, 0]),
    "pooled maps of a ResNet": (lambda x: ModelOutput(x, x[:, :, :1, :1]), lambda x: x[:, :, 0, 0]),
    "first token": (lambda x: ModelOutput(tokens(x)), lambda x: x[:, :, 0, 0]),
    "features": (lambda x: x.flatten(1), lambda x: x.flatten(1)),
}


@pytest.mark.parametrize("form", FORMS)
def test_features_of_what_a_module_returns(form: str) -> None:
    returned, wanted = FORMS[form]
    module = Small(returned)
    backbone = CustomBackbone(module, 8, 3)
    assert module.training
    assert torch.equal(module.layers[1].running_mean, torch.zeros(6))  # type: ignore[arg-type]
    images = torch.randn(4, 3, 8, 8)
    module.eval()
    assert torch.equal(backbone(images), wanted(module.layers(images)))
    assert backbone.num_features == backbone(images).shape[1]


@pytest.mark.parametrize(
    ("form", "words"),
    [
        (tokens, r"returned \(2, 36, 6\)"),
        (lambda maps: [maps], "returned list"),
        (lambda maps: maps.mean(dim=(2, 3))[:1], r"features \(2, F\) for 2 images, .* returned \(1, 6\)"),
        (lambda maps: maps.mean(dim=(2, 3)).long(), r"returned \(2, 6\)"),
    ],
)
def test_other_outputs_are_refused(form: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        CustomBackbone(Small(form), 8, 3)


def test_images_that_the_module_does_not_take(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"Small does not take images \(2, 3, 2, 2\)"):
        CustomBackbone(Small(), 2, 3)


def pretrain(out: Path, module: nn.Module, **given: Any) -> Run:
    torch.set_num_threads(1)
    recipe = tiny.recipe(out.parent)
    return api.pretrain(tiny.images(), recipe=recipe, out=out, backbone=module, progress=False, **given)


def test_training_resuming_and_loading(tmp_path: Path) -> None:
    module = Small(seed=3)
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    whole = pretrain(tmp_path / "whole", module)
    assert all(torch.equal(tensor, before[name]) for name, tensor in module.state_dict().items())
    assert whole.config.model.backbone == "module:Small"

    for step in (3, 8):  # before and after the run's first checkpoint of its own
        with pytest.raises(Crash):
            pretrain(tmp_path / f"crashed-{step}", module, evaluators={step: crash})
        crashed = Run(tmp_path / f"crashed-{step}")
        with pytest.raises(ConfigError, match=r"code from Python \(Small\).*backbone=module"):
            tiny.resume(crashed)
        with pytest.raises(ConfigError, match="'module:Small', and the module given is 'module:Linear'"):
            api.resume(crashed, data=tiny.images(), backbone=nn.Linear(2, 2), progress=False)
        resumed = api.resume(crashed, data=tiny.images(), backbone=Small(seed=9), progress=False)
        assert resumed.backbone_path.read_bytes() == whole.backbone_path.read_bytes()

    weights = load_file(whole.backbone_path)
    assert weights.keys() == before.keys()
    assert not torch.equal(weights["layers.0.weight"], before["layers.0.weight"])
    fresh = Small(seed=7)
    model = ssole.load(whole, backbone=fresh)
    assert all(torch.equal(tensor, weights[name]) for name, tensor in fresh.state_dict().items())
    assert model.num_features == 6
    assert ssole.embed(model, tiny.images(), progress=False).array.shape == (22, 6)
    with pytest.raises(ConfigError, match=r"pass backbone=module to .*ssole\.load"):
        ssole.embed(whole, tiny.images(), progress=False)
    with pytest.raises(ConfigError, match="are not of the network"):
        ssole.load(whole, backbone=nn.Sequential(nn.Conv2d(3, 6, 3)))

    longer = ssole.extend(whole, steps=2, data=tiny.images(), backbone=Small(), progress=False)
    assert len(longer.metrics) == tiny.STEPS + 2


def test_a_model_of_transformers(tmp_path: Path) -> None:
    transformers = pytest.importorskip("transformers", reason="transformers is not installed")
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4}
    config = transformers.Dinov2Config(**small)
    run = pretrain(tmp_path / "run", transformers.Dinov2Model(config), steps=2)
    module = transformers.Dinov2Model(config)
    model = ssole.load(run, backbone=module)
    images = torch.randn(2, 3, 8, 8)
    with torch.no_grad():
        assert torch.equal(model(images), module(images).pooler_output)
    assert module.state_dict().keys() == load_file(run.backbone_path).keys()


def test_modules_and_settings_that_do_not_go_together(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="starts from the weights that it has"):
        pretrain(tmp_path / "a", Small(), init="timm")
    with pytest.raises(ConfigError, match=r"code from Python \(Small\)"):
        tiny.start(tmp_path / "a", model__backbone="module:Small")
    with pytest.raises(ConfigError, match=r"^Small does not say what its stages are"):
        pretrain(tmp_path / "a", Small(), **{"model.frozen_stages": 1})
    assert not (tmp_path / "a").exists()
    run = tiny.start(tmp_path / "timm")
    with pytest.raises(ConfigError, match=r"timm's resnet18, which ssole makes by itself"):
        ssole.load(run, backbone=Small())


def test_the_copy_of_a_module_is_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    moved = []
    monkeypatch.setattr(Small, "cpu", lambda self: moved.append(self) or self)  # as from a GPU
    module = Small()
    encoder = create_encoder(apply_overrides(tiny.config(), custom_settings(module)), module)
    assert moved == [encoder.backbone.module]
    assert moved[0] is not module
