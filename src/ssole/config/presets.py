"""How views are usually made of images of a kind."""

from __future__ import annotations

import dataclasses
import difflib
from typing import Any

from ssole.config.schema import ConfigError, Crop, ViewRecipe

_LARGE, _SMALL = (Crop(count=2, size=224),), (Crop(count=4, size=32),)
_DIGITS = (Crop(count=4, size=32, scale=(0.5, 1.0)),)  # a smaller part of a character may be another one
_FLIPS_AND_TURNS: dict[str, Any] = {"hflip": 0.5, "vflip": 0.5, "turn": 0.75}
_NO_COLOUR: dict[str, Any] = {"saturation": 0.0, "hue": 0.0, "grey": 0.0, "mean": None, "std": None}

PRESETS: dict[str, ViewRecipe] = {
    # SimCLR's (Chen et al. 2020), at the strength that most of its followers use
    "natural": ViewRecipe(crops=_LARGE, saturation=0.2, blur=0.5),
    # at 32 to 64 px a blur leaves little to see
    "small": ViewRecipe(crops=_SMALL),
    # a mirrored character is another one; strong colours, since a common background is the easiest thing to match
    "digits": ViewRecipe(crops=_DIGITS, hflip=0.0, brightness=0.8, contrast=0.8, saturation=0.8, hue=0.5, grey=0.4),
    # no side is up: all eight flips and turns are equally likely; colours carry meaning (vegetation, stains)
    "aerial": ViewRecipe(
        crops=_LARGE, **_FLIPS_AND_TURNS, brightness=0.3, contrast=0.3, saturation=0.2, hue=0.05, grey=0.1, blur=0.3
    ),
    # one channel, such as X-rays or documents
    "grey": ViewRecipe(crops=_LARGE, **_NO_COLOUR, blur=0.5),
    # any number of channels, none of which is red: only what treats all channels alike
    "channels": ViewRecipe(crops=_LARGE, **_NO_COLOUR, **_FLIPS_AND_TURNS, brightness=0.2, contrast=0.2, blur=0.3),
}


def view_preset(name: str) -> ViewRecipe:
    """The view recipe for a kind of images: natural, small, digits, aerial, grey or channels.

    Raises:
        ConfigError: no such preset.
    """
    if name not in PRESETS:
        close = difflib.get_close_matches(name, PRESETS, n=1)
        hint = f" Did you mean {close[0]!r}?" if close else ""
        raise ConfigError(f"no preset {name!r}.{hint} There are: {', '.join(PRESETS)}")
    return PRESETS[name]


def with_preset(recipe: ViewRecipe, name: str) -> ViewRecipe:
    """A preset with the crops of `recipe`."""
    return dataclasses.replace(view_preset(name), crops=recipe.crops)
