"""Settings of a run: immutable, and checked on creation.

`schema.py` defines every setting, with those of losses in `losses.py` and of views, with their presets, in
`view_recipe.py`. `recipes.py` makes a :class:`PretrainConfig` from a recipe (YAML) and overrides by dotted name
(``optim.lr``); `hints.py` explains wrong ones. Most parts use it; of the package it imports `errors` alone. Field
names and defaults are part of the format of recipes and of a run's config.yaml: add fields freely, but do not rename
any. Docstrings of fields are the help of `ssole pretrain`.
"""

from __future__ import annotations

from ssole.config.losses import LOSS_CONFIGS, CustomConfig, LossConfig, Projector, SSOLEConfig
from ssole.config.recipes import DEFAULT_RECIPE, apply_overrides, from_dict, load, recipe_names, to_dict
from ssole.config.schema import ModelConfig, OptimConfig, PretrainConfig
from ssole.config.view_recipe import PRESETS, Crop, ViewRecipe, view_preset
from ssole.errors import ConfigError

__all__ = [
    "DEFAULT_RECIPE", "LOSS_CONFIGS", "PRESETS", "ConfigError", "Crop", "CustomConfig", "LossConfig", "ModelConfig",
    "OptimConfig", "PretrainConfig", "Projector", "SSOLEConfig", "ViewRecipe", "apply_overrides", "from_dict",
    "load", "recipe_names", "to_dict", "view_preset",
]  # fmt: skip
