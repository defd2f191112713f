"""Presets: what they replace, and what they leave out."""

from __future__ import annotations

import pytest

from ssole.config import ConfigError, apply_overrides, load, view_preset


def test_a_preset_replaces_augment_except_its_crops() -> None:
    config = load("digits-m", preset="aerial", views=3, **{"augment.hue": 0.2})
    crop = config.augment.crops[0]
    early = load("digits-m", preset="aerial", **{"augment.early_size": 24, "augment.early_share": 0.3}).augment
    assert (early.early_size, early.early_share) == (24, 0.3)
    assert (crop.count, crop.size, crop.scale) == (3, 32, (0.5, 1.0))
    assert (config.augment.vflip, config.augment.turn, config.augment.hue) == (0.5, 0.75, 0.2)
    with pytest.raises(ConfigError, match=r"no preset 'arial'\. Did you mean 'aerial'\?"):
        apply_overrides(config, {"preset": "arial"})


@pytest.mark.parametrize("name", ["digits", "grey", "channels", "aerial"])
def test_presets_for_images_without_colour_or_an_upper_side(name: str) -> None:
    recipe = view_preset(name)
    if name == "digits":
        assert (recipe.hflip, recipe.vflip, recipe.turn) == (0, 0, 0)
    elif name == "aerial":
        assert (recipe.hflip, recipe.vflip, recipe.turn) == (0.5, 0.5, 0.75)
    else:
        assert not recipe.colour_operations
        assert recipe.mean is None
