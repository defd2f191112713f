"""Weight files: they load strictly into plain timm models and into ssole, and errors say why."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from torch import nn

import tiny
from ssole.config import ConfigError, ModelConfig, PretrainConfig
from ssole.models.backbone import create_backbone, create_encoder, small_stem
from ssole.models.load import backbone_metadata, folder_beside, load, untrained, weights_path
from ssole.training.checkpoint import save_backbone
from ssole.training.run import Run, create_run

TINY = tiny.config().model


@pytest.fixture
def saved(tmp_path: Path) -> tuple[Run, nn.Module]:
    """A run folder with the weights of a network that is not at its start."""
    config = PretrainConfig(model=TINY, seed=4)
    run = create_run(tmp_path / "run", config)
    encoder = create_encoder(PretrainConfig(model=TINY, seed=99))
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
    for source in (run, run.path, str(run.path), run.backbone_path):
        model = load(source)
        assert not model.training
        assert torch.equal(model(images), backbone(images))
    assert (model.image_size, model.num_features) == (32, 16)
    assert model.mean == PretrainConfig().augment.mean
    start = create_encoder(PretrainConfig(model=TINY, seed=4)).backbone.eval()
    assert torch.equal(untrained(run)(images), start(images))


def test_untrained_weights_leave_the_generators_of_a_user(
    saved: tuple[Run, nn.Module], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "manual_seed_all", lambda _: pytest.fail("the generators of GPUs were seeded"))
    state = torch.get_rng_state()
    untrained(saved[0])
    assert torch.equal(torch.get_rng_state(), state)


def test_what_cannot_be_loaded_says_why(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"give a run, its folder or its backbone\.safetensors, got 3$"):
        load(3)
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


def test_weight_files_of_the_first_version_load(saved: tuple[Run, nn.Module], tmp_path: Path) -> None:
    run, backbone = saved
    description = json.loads(backbone_metadata(run.config)["ssole"])
    del description["channels"]  # the first version knew photographs only
    old = tmp_path / "old.safetensors"
    save_file(load_file(run.backbone_path), old, metadata={"ssole": json.dumps(description)})
    images = torch.randn(2, 3, 32, 32)
    model = load(old)
    assert model.channels is None
    assert torch.equal(model(images), backbone(images))


def test_networks_of_other_channels_load(tmp_path: Path) -> None:
    normalise = {"augment__mean": [0.5] * 5, "augment__std": [0.2] * 5}
    config = tiny.config(channels=5, preset="channels", seed=4, **normalise)
    run = create_run(tmp_path / "run", config)
    backbone = create_encoder(config).backbone.eval()
    save_backbone(run, backbone, backbone_metadata(config))
    images = torch.randn(2, 5, 8, 8)
    for model in (load(run), untrained(run)):
        assert model.channels == 5
        assert torch.equal(model(images), backbone(images))


def altered(saved: Run, folder: Path, **changes: object) -> Path:
    """The weight file with other entries in its description."""
    description = json.loads(backbone_metadata(saved.config)["ssole"]) | changes
    path = folder / "altered.safetensors"
    save_file(load_file(saved.backbone_path), path, metadata={"ssole": json.dumps(description)})
    return path


ALTERED: list[dict[str, object]] = [
    {"model": None},
    {"model": []},
    {"model": {"backbone": 3}},
    {"model": {"backbone": "resnet_18"}},
    {"model": {"backbone": "hf-hub:someone/resnet18"}},
    {"model": {"backbone": "resnet18", "unknown": 1}},
    {"model": {"backbone": "resnet18", "backbone_args": {"checkpoint_path": "evil.pth"}}},
    {"model": {"backbone": "resnet18", "backbone_args": {"pretrained_cfg": {"file": "evil.pth"}}}},
    {"model": {"backbone": "resnet18", "backbone_args": {"layers": "many"}}},
    {"model": {"backbone": "resnet18", "backbone_args": {"layers": [10**6] * 4}}},
    {"model": {"backbone": "resnet18", "backbone_args": {"channels": [60_000] * 4}}},
    {"model": {"backbone": "resnet18", "backbone_args": {"channels": [-1] * 4}}},
    {"model": {"backbone": "resnet34"}},  # whose weights these are not
    {"image_size": None},
    {"image_size": "32"},
    {"image_size": 0},
    {"image_size": -3},
    {"image_size": 32.5},
    {"image_size": True},
    {"image_size": 10**9},
    {"channels": 0},
    {"channels": "3"},
    {"channels": 10**6},
    {"channels": 4},
    {"mean": None},
    {"mean": [0.5]},
    {"mean": ["0.5"] * 3},
    {"mean": [float("nan")] * 3},
    {"mean": [0.5] * 10**5, "std": [0.5] * 10**5},
    {"std": [0.0] * 3},
    {"std": [-1.0] * 3},
    {"std": {"a": 1}},
    {"seed": None},
    {"seed": 2**70},
    {"seed": "1"},
]


@pytest.mark.parametrize("changes", ALTERED, ids=str)
@pytest.mark.parametrize("make", [load, untrained])
def test_an_altered_header_is_an_error(
    saved: tuple[Run, nn.Module], tmp_path: Path, changes: dict[str, object], make: Callable[[Path], nn.Module]
) -> None:
    if changes == {"model": {"backbone": "resnet34"}} and make is untrained:
        pytest.skip("a network at its start has no weights to compare")
    with pytest.raises(ConfigError):
        make(altered(saved[0], tmp_path, **changes))


@pytest.mark.parametrize("text", ["", "null", "[]", "{", "{}", "[" * 10**5, "Infinity", "9" * 5000])
def test_a_header_that_describes_nothing_names_the_file(
    saved: tuple[Run, nn.Module], tmp_path: Path, text: str
) -> None:
    path = tmp_path / "x.safetensors"
    save_file(load_file(saved[0].backbone_path), path, metadata={"ssole": text})
    with pytest.raises(ConfigError, match=r"the header of .*x\.safetensors does not describe a network"):
        load(path)


def test_missing_and_other_weights_are_an_error(saved: tuple[Run, nn.Module], tmp_path: Path) -> None:
    weights, metadata = load_file(saved[0].backbone_path), backbone_metadata(saved[0].config)
    for change in ({}, weights | {"more": torch.zeros(1)}, weights | {"conv1.weight": torch.zeros(2, 2)}):
        save_file(change, tmp_path / "x.safetensors", metadata=metadata)
        with pytest.raises(ConfigError, match="are not of the network that its header describes"):
            load(tmp_path / "x.safetensors")


def test_what_is_made_of_kept_weights_has_a_folder_of_its_own() -> None:
    run = Path("runs/mine")
    assert folder_beside(run / "backbone.safetensors", "index") == run / "index"
    assert folder_beside(run / "backbone-step-00000100.safetensors", "index") == run / "index-step-00000100"
    assert folder_beside(Path("mine.safetensors"), "index") == Path("index")


def test_a_command_in_a_message_can_be_pasted(tmp_path: Path) -> None:
    run = create_run(tmp_path / "my run", tiny.config())
    with pytest.raises(ConfigError, match=r"ssole pretrain --resume '.*my run'$"):
        weights_path(run)
