"""Settings: immutable, and checked together."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from ssole.config import ConfigError, Crop, PretrainConfig, ViewRecipe, apply_overrides, from_dict, to_dict, view_preset


def test_views_are_counted_over_crop_groups() -> None:
    recipe = ViewRecipe(crops=(Crop(count=2, size=224), Crop(count=6, size=96)))
    assert recipe.views == 8
    assert recipe.image_size == 224


def test_main_views_are_those_of_the_first_group() -> None:
    recipe = ViewRecipe(crops=(Crop(count=1, size=224, scale=(0.3, 1.0)), Crop(count=6, size=96)), hue=0.3)
    assert recipe.main_views(8) == ViewRecipe(crops=(Crop(count=8, size=224, scale=(0.3, 1.0)),), hue=0.3)


def test_the_first_part_of_a_run_has_smaller_main_crops() -> None:
    recipe = ViewRecipe(crops=(Crop(count=2, size=32), Crop(count=6, size=16)), early_size=24, hue=0.3)
    assert recipe.early == ViewRecipe(crops=(Crop(count=2, size=24), Crop(count=6, size=16)), hue=0.3)
    assert ViewRecipe().early is None
    assert recipe.image_size == 32  # of evaluation
    assert recipe.pixels == 2 * 32**2 + 6 * 16**2
    assert recipe.main_views(4).early is None


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"early_size": 33}, r"early_size must be from 4 to the main crops' size, 32, .* got 33"),
        ({"early_size": 3}, "early_size must be from 4"),
        ({"early_share": 1.0}, "early_share must be above 0 and below 1, got 1.0"),
        ({"early_share": 0}, "early_share must be above 0 and below 1, got 0"),
    ],
)
def test_wrong_first_parts_are_refused(settings: dict[str, float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        from_dict({"augment": settings})


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"augment.brightness": math.inf}, "brightness must be at least 0 and finite, got inf"),
        ({"augment.saturation": math.nan}, "saturation must be at least 0 and finite, got nan"),
        ({"augment.crops.0.ratio": [0.5, math.inf]}, r"crop ratio must satisfy .* both finite, got \(0\.5, inf\)"),
        ({"augment.blur_sigma": [0.1, math.inf]}, r"blur_sigma must satisfy .* both finite, got \(0\.1, inf\)"),
        ({"augment.mean": [0.5, math.nan, 0.5]}, "mean and std must be finite"),
        ({"optim.weight_decay": math.inf}, "weight_decay must be at least 0 and finite, got inf"),
    ],
)
def test_numbers_that_are_not_finite_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides(PretrainConfig(), settings)


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
