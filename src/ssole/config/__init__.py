"""Every setting of a run, checked once, and never changed.

A recipe (YAML) fills a :class:`PretrainConfig`; the command line and Python override single fields by their dotted
names (``optim.lr``). The config of a run is written to its folder and is all that is needed to go on with it.
"""

from __future__ import annotations

from ssole.config.presets import PRESETS, view_preset, with_preset
from ssole.config.recipes import (
    apply_overrides,
    field_paths,
    from_dict,
    load_recipe,
    read_settings,
    recipe_names,
    to_dict,
)
from ssole.config.schema import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    ConfigError,
    Crop,
    LossConfig,
    ModelConfig,
    OptimConfig,
    PretrainConfig,
    ViewRecipe,
)

__all__ = [
    "IMAGENET_MEAN",
    "IMAGENET_STD",
    "PRESETS",
    "ConfigError",
    "Crop",
    "LossConfig",
    "ModelConfig",
    "OptimConfig",
    "PretrainConfig",
    "ViewRecipe",
    "apply_overrides",
    "field_paths",
    "from_dict",
    "load_recipe",
    "read_settings",
    "recipe_names",
    "to_dict",
    "view_preset",
    "with_preset",
]
