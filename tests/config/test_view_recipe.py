"""Settings of views: what is counted over crop groups, the parts of a run, presets, and numbers refused."""

from __future__ import annotations

import math
from typing import Any

import pytest

from ssole.config import ConfigError, Crop, PretrainConfig, ViewRecipe, apply_overrides, from_dict, load, view_preset


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
    ],
)
def test_numbers_that_are_not_finite_are_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        apply_overrides(PretrainConfig(), settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crops": []}, "a view recipe needs at least one crop group"),
        ({"hflip": 1.01}, r"hflip is a probability in \[0, 1\], got 1\.01"),
        ({"vflip": -0.01}, r"vflip is a probability in \[0, 1\], got -0\.01"),
        ({"turn": 2}, r"turn is a probability in \[0, 1\], got 2"),
        ({"jitter": math.nan}, r"jitter is a probability in \[0, 1\], got nan"),
        ({"grey": -1}, r"grey is a probability in \[0, 1\], got -1"),
        ({"blur": 1.5}, r"blur is a probability in \[0, 1\], got 1\.5"),
        ({"solarize": 1.5}, r"solarize is a probability in \[0, 1\], got 1\.5"),
        ({"contrast": -0.1}, r"contrast must be at least 0 and finite, got -0\.1"),
        ({"hue": 0.51}, r"hue must be in \[0, 0\.5\], got 0\.51"),
        ({"blur_sigma": (0.0, 1.0)}, r"blur_sigma must satisfy 0 < min <= max, both finite, got \(0\.0, 1\.0\)"),
        ({"blur_sigma": (2.0, 1.0)}, r"blur_sigma must satisfy .*, got \(2\.0, 1\.0\)"),
        ({"std": None}, r"give both mean and std or neither, got \(0\.485, 0\.456, 0\.406\), None"),
        ({"std": (0.2, 0.0, 0.2)}, r"std must be positive, got \(0\.2, 0\.0, 0\.2\)"),
        ({"std": (0.2, 0.2)}, "mean and std need a number for each channel, got 3 and 2"),
    ],
)
def test_wrong_recipes_are_quoted(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        ViewRecipe(**settings)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"count": 0}, "crop count must be at least 1, got 0"),
        ({"size": 3}, "crop size must be at least 4 pixels, got 3"),
        ({"scale": (0.0, 1.0)}, r"crop scale must satisfy 0 < min <= max <= 1, got \(0\.0, 1\.0\)"),
        ({"scale": (0.5, 0.4)}, r"crop scale must satisfy .*, got \(0\.5, 0\.4\)"),
        ({"scale": (0.5, 1.1)}, r"crop scale must satisfy .*, got \(0\.5, 1\.1\)"),
        ({"ratio": (0.0, 1.0)}, r"crop ratio must satisfy 0 < min <= max, both finite, got \(0\.0, 1\.0\)"),
        ({"ratio": (2.0, 1.0)}, r"crop ratio must satisfy .*, got \(2\.0, 1\.0\)"),
    ],
)
def test_wrong_crops_are_quoted(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"^{message}$"):
        Crop(**settings)


def test_the_ends_of_all_ranges_are_allowed() -> None:
    crop = Crop(count=1, size=4, scale=(1.0, 1.0), ratio=(1.0, 1.0))
    for p in (0, 1):
        probabilities: dict[str, Any] = dict.fromkeys(
            ("hflip", "vflip", "turn", "jitter", "grey", "blur", "solarize"), p
        )
        recipe = ViewRecipe(crops=(crop,), early_size=4, hue=p / 2, brightness=p, blur_sigma=(1, 1), **probabilities)
        assert recipe.views == 1


def test_the_parts_of_a_run() -> None:
    recipe = ViewRecipe(crops=(Crop(count=2, size=32), Crop(count=6, size=16)), early_size=24)
    early, final = recipe.parts
    assert early == recipe.early
    assert final is recipe
    assert early.parts == (early,)  # it has no first part of its own
    assert (early.pixels, final.pixels) == (2 * 24**2 + 6 * 16**2, 2 * 32**2 + 6 * 16**2)


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, ("saturation", "hue", "grey")),
        ({"jitter": 0.0}, ("grey",)),
        ({"grey": 0.0, "hue": 0.0}, ("saturation",)),
        ({"grey": 0.0, "saturation": 0.0}, ("hue",)),
        ({"jitter": 0.0, "grey": 0.0}, ()),
    ],
)
def test_only_what_can_happen_needs_colours(settings: dict[str, Any], expected: tuple[str, ...]) -> None:
    assert ViewRecipe(**settings).colour_operations == expected


@pytest.mark.parametrize("ratio", [(0.5, 2.0), (0.75, 1.0), (1.0, 3.0), (2.0, 3.0), (0.2, 0.5)])
@pytest.mark.parametrize("scale", [0.08, 0.3, 1.0])
def test_at_its_useful_size_no_crop_of_a_square_is_enlarged(ratio: tuple[float, float], scale: float) -> None:
    """The oracle cuts crops of every ratio there is, of the smallest area, and measures their shorter sides."""
    crop = Crop(size=40, scale=(scale, 1.0), ratio=ratio)
    side = ViewRecipe(crops=(crop, Crop(size=8))).useful_size
    low, high = ratio

    def shortest(side: float) -> float:
        shapes = [low + (high - low) * i / 100 for i in range(101)]
        return min(min(math.sqrt(scale * side**2 * r), math.sqrt(scale * side**2 / r)) for r in shapes)

    assert shortest(side) >= 40 - 1e-9
    assert shortest(side - 1) < 40


def test_the_useful_size_is_that_of_the_crop_that_needs_most() -> None:
    large, small = Crop(size=32, scale=(0.25, 1.0), ratio=(1, 1)), Crop(size=24, scale=(0.09, 1.0), ratio=(1, 1))
    assert ViewRecipe(crops=(large,)).useful_size == 64
    assert ViewRecipe(crops=(small,)).useful_size == 80
    assert ViewRecipe(crops=(large, small)).useful_size == 80


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
