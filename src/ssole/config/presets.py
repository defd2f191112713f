"""Presets: the usual augmentation for kinds of images."""

from __future__ import annotations

from typing import Any

from ssole.config.view_recipe import Crop, ViewRecipe
from ssole.errors import ConfigError, did_you_mean

_LARGE, _SMALL = (Crop(count=2, size=224),), (Crop(count=4, size=32),)
_DIGITS = (Crop(count=4, size=32, scale=(0.5, 1.0)),)  # a smaller part of a character may look like another character
_FLIPS_AND_TURNS: dict[str, Any] = {"hflip": 0.5, "vflip": 0.5, "turn": 0.75}
_NO_COLOUR: dict[str, Any] = {"saturation": 0.0, "hue": 0.0, "grey": 0.0, "mean": None, "std": None}

PRESETS: dict[str, ViewRecipe] = {
    # SimCLR's augmentation (Chen et al. 2020), at the strength that most later methods use
    "natural": ViewRecipe(crops=_LARGE, saturation=0.2, blur=0.5),
    # the defaults, which have no blur: at 32 to 64 px it leaves little to see
    "small": ViewRecipe(crops=_SMALL),
    # no flips: a mirrored character is another one. Strong colours, or views would be matched by their background
    "digits": ViewRecipe(crops=_DIGITS, hflip=0.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, grey=0.4),
    # no side is up: all eight flips and turns are equally likely. Weak colours, which carry meaning (plants, stains)
    "aerial": ViewRecipe(
        crops=_LARGE, **_FLIPS_AND_TURNS, brightness=0.3, contrast=0.3, saturation=0.2, hue=0.05, grey=0.1, blur=0.3
    ),
    # one channel, such as X-rays or documents
    "grey": ViewRecipe(crops=_LARGE, **_NO_COLOUR, blur=0.5),
    # any number of channels, none of them red, green or blue: only operations that treat all channels equally
    "channels": ViewRecipe(crops=_LARGE, **_NO_COLOUR, **_FLIPS_AND_TURNS, brightness=0.2, contrast=0.2, blur=0.3),
}


def view_preset(name: str) -> ViewRecipe:
    """View recipe for a kind of images, natural, small, digits, aerial, grey or channels; a ConfigError for others."""
    if name not in PRESETS:
        raise ConfigError(f"no preset {name!r}.{did_you_mean(name, PRESETS)} There are: {', '.join(PRESETS)}")
    return PRESETS[name]
