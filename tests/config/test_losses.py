"""Settings of losses: one class a method, chosen by name, with the published projector as default."""

from __future__ import annotations

import dataclasses
import inspect
from typing import Any

import pytest

from ssole.config import LOSS_CONFIGS, ConfigError, CustomConfig, SSOLEConfig, apply_overrides, from_dict, load, to_dict
from ssole.config.losses import SimCLRConfig, VICRegConfig
from ssole.losses import LOSSES


def test_without_a_name_it_is_ssole() -> None:
    assert from_dict({"loss": {"gamma": 0.25}}).loss == SSOLEConfig(gamma=0.25)


@pytest.mark.parametrize("name", LOSS_CONFIGS)
def test_settings_survive_yaml_and_fit_their_class(name: str) -> None:
    config = from_dict({"loss": {"name": name}})
    assert from_dict(to_dict(config)) == config
    if name in ("custom", "supervised"):  # whose arguments come from the data, or from Python
        return
    arguments = set(inspect.signature(LOSSES[name]).parameters) - {"check_input", "normalize"}
    assert {field.name for field in dataclasses.fields(config.loss)} - {"name"} <= arguments
    fields = dataclasses.asdict(config.loss)
    del fields["name"]
    assert LOSSES[name](**fields, check_input=False)


def test_every_loss_has_settings() -> None:
    assert set(LOSSES) == set(LOSS_CONFIGS) - {"custom"}


def test_settings_may_be_given_as_an_object() -> None:
    config = load("digits-m", loss=SimCLRConfig(temperature=0.3))
    assert config.loss == SimCLRConfig(temperature=0.3)
    assert config.projector == SimCLRConfig.projector


def test_another_loss_brings_its_own_settings_and_projector() -> None:
    recipe = load("digits-m")
    assert recipe.projector == (2, 2048, 512, "none")
    config = apply_overrides(recipe, {"loss.name": "vicreg", "loss.variance_weight": 10.0})
    assert config.loss == VICRegConfig(variance_weight=10.0)
    assert config.projector == (3, 8192, 8192, "batch")
    config = apply_overrides(recipe, {"loss": {"name": "simclr", "temperature": 0.2}, "model.projector_dim": 64})
    assert config.loss == SimCLRConfig(temperature=0.2)
    assert config.projector == (2, 2048, 64, "batch")


def test_naming_the_loss_that_is_there_changes_nothing() -> None:
    recipe = load("digits-m")
    assert apply_overrides(recipe, {"loss.name": "ssole"}) == recipe


def test_a_module_from_python_keeps_the_projector() -> None:
    config = apply_overrides(load("digits-m"), {"loss": {"name": "custom", "module": "Mine"}})
    assert config.loss == CustomConfig(module="Mine")
    assert config.projector == (2, 2048, 512, "none")


@pytest.mark.parametrize(
    ("loss", "words"),
    [
        ({"name": "simclrr"}, r"no loss 'simclrr'\. Did you mean 'simclr'\? There are: ssole, ole, simclr"),
        ({"name": ["simclr"]}, r"no loss \['simclr'\]"),
        ({"name": "simclr", "gamma": 0.5}, r"unknown setting 'loss\.gamma'\. It belongs to the loss ssole"),
        ({"local_weight": 0.5}, r"'loss\.local_weight'\. It belongs to the loss mmcr: choose that by loss\.name first"),
        ({"temperature": 0.0}, "loss: temperature must be above 0 and finite, or null, got 0.0"),
        ({"name": "simclr", "temperature": 0.0}, "loss: temperature must be above 0 and finite, got 0.0"),
        ({"name": "simclr", "temperature": "warm"}, r"loss\.temperature: .*'warm'"),
        ({"name": "vicreg", "variance_weight": -1.0}, "variance_weight must be at least 0 and finite, got -1.0"),
        ("simclr", "loss must be a mapping of settings, got 'simclr'"),
    ],
)
def test_mistakes_are_named(loss: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        from_dict({"loss": loss})
