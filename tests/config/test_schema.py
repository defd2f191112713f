"""Settings: immutable, and checked together."""

from __future__ import annotations

import dataclasses
import math

import pytest

from ssole.config import ConfigError, PretrainConfig, apply_overrides, from_dict, to_dict, view_preset


def test_a_weight_decay_that_is_not_finite_is_refused() -> None:
    with pytest.raises(ConfigError, match="weight_decay must be at least 0 and finite, got inf"):
        apply_overrides(PretrainConfig(), {"optim.weight_decay": math.inf})


def test_configs_cannot_be_changed() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        PretrainConfig().epochs = 3  # type: ignore[misc]


def test_channels_and_their_normalisation_must_agree() -> None:
    config = from_dict({"channels": 5, "augment": to_dict(view_preset("channels"))})
    assert apply_overrides(config, {"augment.mean": [0.5] * 5, "augment.std": [0.2] * 5}).augment.std == (0.2,) * 5
    with pytest.raises(ConfigError, match=r"need 5 numbers for channels = 5, got \(0.5, 0.5\)"):
        apply_overrides(config, {"augment.mean": [0.5] * 2, "augment.std": [0.2] * 2})
    with pytest.raises(ConfigError, match="saturation and hue and grey need red, green and blue, and channels is 1"):
        from_dict({"channels": 1, "augment": {"mean": None, "std": None}})
    with pytest.raises(ConfigError, match="give both mean and std or neither"):
        from_dict({"augment": {"mean": None}})


def test_a_seed_that_torch_cannot_take_is_told() -> None:
    assert PretrainConfig(seed=(1 << 64) - 1).seed == (1 << 64) - 1
    with pytest.raises(ConfigError, match="seed must fit into 64 bits, got 18446744073709551616"):
        PretrainConfig(seed=1 << 64)
