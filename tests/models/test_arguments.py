"""Arguments of backbones: no file or address reaches timm, and no network is larger than the memory."""

from __future__ import annotations

from typing import Any

import pytest
import timm
import torch

from ssole.config import ConfigError, ModelConfig
from ssole.models.arguments import checked_arguments
from ssole.models.backbone import create_backbone

NAMES_OF_FILES = {
    "checkpoint_path": "evil.pth",
    "pretrained_cfg": {"file": "evil.pth"},
    "pretrained_cfg_overlay": {"url": "https://example.org/evil.pth"},
    "cache_dir": "/tmp",
    "pretrained": True,
    "features_only": True,
    "scriptable": True,
    "kwargs_filter": ["a"],
    "num_classes": 3,
}


@pytest.mark.parametrize("name", NAMES_OF_FILES)
def test_what_names_files_never_reaches_timm(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr(timm, "create_model", lambda *_, **__: pytest.fail("timm was called"))
    config = ModelConfig(backbone="resnet18", backbone_args={name: NAMES_OF_FILES[name]})
    with pytest.raises(ConfigError, match=f"do not fit resnet18: '{name}' is not allowed"):
        create_backbone(config, 32)


def test_a_mistyped_argument_is_named_with_the_closest() -> None:
    with pytest.raises(ConfigError, match=r"'layer' is not allowed\. Did you mean 'layers'\?"):
        checked_arguments(ModelConfig(backbone_args={"layer": [1]}))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"layers": {"a": 1}}, "numbers, words and lists"),
        ({"layers": [[object()]]}, "numbers, words and lists"),
        ({"channels": [10**9] * 4}, "channels has a number above 65536"),
        ({"drop_rate": float("nan")}, "drop_rate has a number above 65536"),
        ({"layers": [900, 900, 1, 1]}, "layers asks for more than 1000 blocks"),
        ({"channels": [30_000] * 4}, r"its weights would take .* GiB, and .* GiB may be used"),
        ({"layers": [1]}, "do not fit resnet18"),
        ({"layers": [1, 1, 1, "one"]}, "do not fit resnet18"),
        ({"channels": [0, 0, 0, 0]}, "do not fit resnet18"),
        ({"channels": [-8] * 4}, "do not fit resnet18"),
        ({"output_stride": 3}, "do not fit resnet18"),
        ({"act_layer": "no such layer"}, "do not fit resnet18"),
        ({"norm_layer": 7}, "do not fit resnet18"),
        ({"global_pool": "none at all"}, "do not fit resnet18"),
    ],
)
def test_odd_arguments_are_an_error_in_one_line(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        create_backbone(ModelConfig(backbone="resnet18", backbone_args=arguments), 32)


def test_looking_at_the_size_changes_no_weight_and_no_generator() -> None:
    arguments = {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 8]}
    torch.manual_seed(5)
    expected = timm.create_model("resnet18", num_classes=0, **arguments).state_dict()
    after = torch.get_rng_state()
    torch.manual_seed(5)
    found = create_backbone(ModelConfig(backbone="resnet18", backbone_args=arguments, stem="timm"), 32).state_dict()
    assert all(torch.equal(found[name], expected[name]) for name in expected)
    assert torch.equal(torch.get_rng_state(), after)
