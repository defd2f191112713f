"""Settings of views: groups of crops, the operations on their colours, and presets for kinds of images.

The docstring of a field is also its help on the command line: keep it to one line.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

from ssole.errors import ConfigError, check, check_non_negative, did_you_mean

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True, kw_only=True)
class Crop:
    """Group of views of one size: `count` random resized crops of each image."""

    count: int = 2
    """Views of each image in this group."""
    size: int = 32
    """Side of the square crop, in pixels."""
    scale: tuple[float, float] = (0.2, 1.0)
    """Range of the crop's area, as a share of the image's area."""
    ratio: tuple[float, float] = (3 / 4, 4 / 3)
    """Range of the crop's aspect ratio (width over height) before it is resized to a square."""

    def __post_init__(self) -> None:
        check(self.count >= 1, f"crop count must be at least 1, got {self.count}")
        check(self.size >= 4, f"crop size must be at least 4 pixels, got {self.size}")
        check(0 < self.scale[0] <= self.scale[1] <= 1, f"crop scale must satisfy 0 < min <= max <= 1, got {self.scale}")
        low, high = self.ratio
        check(0 < low <= high < math.inf, f"crop ratio must satisfy 0 < min <= max, both finite, got {self.ratio}")


@dataclass(frozen=True, kw_only=True)
class ViewRecipe:
    """Augmentation that makes the views of an image. Probabilities are per view.

    Operations run in the order of the fields, but grey after blur, which gives the same. The first crop group is the
    main one: its size is that of evaluation.
    """

    crops: tuple[Crop, ...] = (Crop(),)
    """Groups of crops. The first group gives the main views; `--views` sets its count."""
    early_size: int | None = None
    """Side of the main crops in the first part of the run, where steps are then faster; None: the same throughout."""
    early_share: float = 0.5
    """Share of the run, by steps, that has main crops of `early_size`."""
    hflip: float = 0.5
    """Probability of a left-right flip. Use 0 where left and right differ (digits, text)."""
    vflip: float = 0.0
    """Probability of an upside-down flip."""
    turn: float = 0.0
    """Probability of a turn by 90, 180 or 270 degrees (equally likely). 0.75 makes all four sides equally likely."""
    jitter: float = 0.8
    """Probability of colour jitter: the next four operations, in random order."""
    brightness: float = 0.4
    """Strength b of brightness changes: the factor is drawn from [max(0, 1 - b), 1 + b]."""
    contrast: float = 0.4
    """Strength of contrast changes, with a factor as for brightness."""
    saturation: float = 0.4
    """Strength of saturation changes, with a factor as for brightness."""
    hue: float = 0.1
    """Strength h of hue changes: the shift is drawn from [-h, h] turns of the colour wheel; at most 0.5."""
    grey: float = 0.2
    """Probability that a view becomes grey."""
    blur: float = 0.0
    """Probability of Gaussian blur."""
    blur_sigma: tuple[float, float] = (0.1, 2.0)
    """Range of the blur's standard deviation, in pixels of the crop."""
    solarize: float = 0.0
    """Probability of solarizing: values of 128/255 and more are inverted."""
    mean: tuple[float, ...] | None = IMAGENET_MEAN
    """Mean of each channel of images in [0, 1], subtracted last. None: measured on the images when a run starts."""
    std: tuple[float, ...] | None = IMAGENET_STD
    """Standard deviation of each channel, the divisor after subtracting `mean`. None when `mean` is None."""

    def __post_init__(self) -> None:
        check(len(self.crops) >= 1, "a view recipe needs at least one crop group")
        most = self.crops[0].size
        check(
            self.early_size is None or 4 <= self.early_size <= most,
            f"early_size must be from 4 to the main crops' size, {most}, or None for one size; got {self.early_size}",
        )
        check(0 < self.early_share < 1, f"early_share must be above 0 and below 1, got {self.early_share}")
        for name in ("hflip", "vflip", "turn", "jitter", "grey", "blur", "solarize"):
            check(0 <= getattr(self, name) <= 1, f"{name} is a probability in [0, 1], got {getattr(self, name)}")
        for name in ("brightness", "contrast", "saturation"):
            check_non_negative(name, getattr(self, name))
        check(0 <= self.hue <= 0.5, f"hue must be in [0, 0.5], got {self.hue}")
        low, high = self.blur_sigma
        check(0 < low <= high < math.inf, f"blur_sigma must satisfy 0 < min <= max, both finite, got {self.blur_sigma}")
        check(
            (self.mean is None) == (self.std is None), f"give both mean and std or neither, got {self.mean}, {self.std}"
        )
        if self.mean is not None and self.std is not None:
            check(min(self.std, default=0) > 0, f"std must be positive, got {self.std}")
            finite = all(map(math.isfinite, (*self.mean, *self.std)))
            check(finite, f"mean and std must be finite, got {self.mean} and {self.std}")
            check(
                len(self.mean) == len(self.std),
                f"mean and std need a number for each channel, got {len(self.mean)} and {len(self.std)}",
            )

    @property
    def colour_operations(self) -> tuple[str, ...]:
        """Operations of the recipe that need red, green and blue."""
        jittered = tuple(name for name in ("saturation", "hue") if self.jitter > 0 and getattr(self, name) > 0)
        return jittered + (("grey",) if self.grey > 0 else ())

    @property
    def views(self) -> int:
        """Number of views of each image, over all crop groups."""
        return sum(crop.count for crop in self.crops)

    @property
    def image_size(self) -> int:
        """Side of the main crop in pixels, which is also the image size in evaluation."""
        return self.crops[0].size

    @property
    def early(self) -> ViewRecipe | None:
        """The recipe in the first part of a run; None if it is the same throughout."""
        if self.early_size is None:
            return None
        main, *others = self.crops
        return replace(self, crops=(replace(main, size=self.early_size), *others), early_size=None)

    @property
    def parts(self) -> tuple[ViewRecipe, ...]:
        """The recipes of a run's parts: early and final, or the only one."""
        return (self,) if self.early is None else (self.early, self)

    @property
    def pixels(self) -> int:
        """Pixels of an image's views."""
        return sum(crop.count * crop.size**2 for crop in self.crops)

    def main_views(self, count: int) -> ViewRecipe:
        """The recipe with `count` views of the main crop and no other crops: what label-free figures compare."""
        return replace(self, crops=(replace(self.crops[0], count=count),), early_size=None)

    @property
    def useful_size(self) -> int:
        """Shorter side, in pixels, beyond which an image has more detail than its crops can show.

        At this size, the smallest and narrowest crop has as many pixels as its view. Larger photographs are reduced to
        it when they are decoded, because a batch of photographs of many megapixels would take gigabytes.
        """
        return max(math.ceil(c.size / math.sqrt(c.scale[0] * min(c.ratio[0], 1 / c.ratio[1]))) for c in self.crops)


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
