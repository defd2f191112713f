"""Recipes and overrides: complete, typed, and helpful when mistyped."""

from __future__ import annotations

import dataclasses
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import yaml

from ssole.config import (
    ConfigError,
    Crop,
    OptimConfig,
    PretrainConfig,
    SSOLEConfig,
    apply_overrides,
    from_dict,
    load,
    recipe_names,
    to_dict,
)


@pytest.mark.parametrize("name", recipe_names())
def test_every_recipe_is_a_valid_config_and_survives_a_round_trip(name: str) -> None:
    config = load(name)
    assert from_dict(to_dict(config)) == config


def test_imagenet100_is_the_released_configuration() -> None:
    config = load("imagenet100")
    (crop,) = config.augment.crops
    assert (crop.count, crop.size, crop.scale) == (4, 224, (0.14, 1.0))
    assert config.projector == (3, 4096, 4096, "none")
    assert config.loss == SSOLEConfig(high_rank_weight=0.6, gamma=0.5)
    assert config.optim == OptimConfig(name="sgd", lr=2.0, final_lr=0.002, weight_decay=1e-5)
    assert (config.batch_size, config.epochs) == (128, 100)


def test_digits_are_never_flipped() -> None:
    augment = load("digits-m").augment
    assert augment.hflip == augment.vflip == 0


def test_recipe_files(tmp_path: Path) -> None:
    good = tmp_path / "mine.yaml"
    good.write_text("epochs: 3\noptim: {lr: 0.5}\n")
    assert load(str(good)).optim.lr == 0.5
    bad = tmp_path / "bad.yaml"
    bad.write_text("epochs: [3\n")
    with pytest.raises(ConfigError, match="not valid YAML"):
        load(str(bad))
    bad.write_text("- 1\n")
    with pytest.raises(ConfigError, match="mapping"):
        load(str(bad))
    with pytest.raises(ConfigError, match="Did you mean 'cifar10'"):
        load("cifar-10")
    with pytest.raises(ConfigError, match=r"'model\.pretrained'\. timm's pretrained weights are init: timm"):
        load("photos", **{"model.pretrained": True})


def test_overrides_reach_every_depth_and_leave_the_rest() -> None:
    overrides = {"optim.lr": 1, "views": 6, "loss": {"gamma": 0.25}, "epochs": 3, "augment.crops.0.size": 48}
    config = apply_overrides(PretrainConfig(), overrides)
    assert config.augment.crops == (Crop(count=6, size=48),)
    assert config.optim == dataclasses.replace(OptimConfig(), lr=1.0)
    assert config.loss == SSOLEConfig(gamma=0.25)
    assert config.epochs == 3


def test_values_may_be_numpy_numbers_paths_or_configs() -> None:
    given = {"batch_size": np.int64(8), "optim.lr": np.float32(0.5), "data": Path("a"), "loss": SSOLEConfig(gamma=0.25)}
    config = apply_overrides(PretrainConfig(), given)
    assert (config.batch_size, config.optim.lr, config.data, config.loss.gamma) == (8, 0.5, "a", 0.25)


def test_epochs_replace_the_steps_of_a_recipe_unless_both_are_given() -> None:
    recipe = PretrainConfig(steps=700)
    assert apply_overrides(recipe, {"epochs": 3}).steps is None
    assert apply_overrides(recipe, {"epochs": 3, "steps": 9}).steps == 9
    assert apply_overrides(recipe, {"seed": 1}).steps == 700


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("learning_rate", 1.0, ["learning_rate"]),
        ("lr", 1.0, ["'lr'", "optim.lr"]),
        ("optim.learning_rat", 1.0, ["optim.learning_rat"]),
        ("batchsize", 8, ["batch_size"]),
        ("optim.weigth_decay", 0.1, ["optim.weight_decay"]),
        ("loss", {"gama": 0.5}, ["loss.gama", "loss.gamma"]),
        ("augment", {"crops": [{"cuont": 2}]}, ["crops.0.cuont"]),
        ("optimizer.lr", 1.0, ["optimizer"]),
        ("clip", 1.0, ["optim.clip_grad_norm"]),
        ("epochs.first", 1, ["epochs.first", "no group 'epochs'"]),
        ("augment.crops.1.size", 32, ["augment.crops.1.size", "0 to 0"]),
        ("augment.crops.size", 32, ["augment.crops.size", "'size' should be a number"]),
        ("augment.crops.\u00b2.size", 32, ["'\u00b2' should be a number"]),  # a digit to Python
    ],
)
def test_an_unknown_key_is_named_with_the_closest(key: str, value: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        apply_overrides(PretrainConfig(), {key: value})
    for word in words:
        assert word in str(error.value)


@pytest.mark.parametrize(
    ("key", "value", "words"),
    [
        ("epochs", "ten", ["epochs", "integer", "'ten'"]),
        ("epochs", 1.5, ["epochs", "1.5"]),
        ("epochs", 0, ["epochs", "got 0"]),
        ("optim.lr", "1.0", ["optim.lr", "'1.0'"]),
        ("optim.lr", -1.0, ["lr must be positive", "-1.0"]),
        ("optim.name", "adam", ["optim.name", "adamw", "'adam'"]),
        ("deterministic", "yes", ["deterministic", "'yes'"]),
        ("batch_size", 1, ["batch_size", "got 1"]),
        ("views", 1, ["2 views", "makes 1"]),
        ("loss.gamma", 1.5, ["gamma", "1.5"]),
        ("augment.hflip", 2.0, ["hflip", "2.0"]),
        ("augment.hue", 0.7, ["hue", "0.7"]),
        ("optim.lr", float("inf"), ["lr must be positive and finite"]),
        ("optim.lr", "1e-4", ["optim.lr", "1.0e-4"]),
        ("optim.betas", [0.9, 1.0], ["betas", "1.0"]),
        ("optim.clip_grad_norm", 0.0, ["clip_grad_norm", "0.0"]),
        ("loss.high_rank_weight", float("nan"), ["high_rank_weight", "nan"]),
        ("model.projector_dim", 10**30, ["projector_dim", "at most 2^20"]),
        ("model.projector_layers", 10**6, ["projector_layers", "[0, 100]"]),
        ("data", 3, ["data must be a name, a path", "3"]),
        ("eval_data", 3, ["eval_data must be a name, a path", "3"]),
        ("seed", object(), ["object"]),
    ],
)
def test_a_wrong_value_is_quoted(key: str, value: object, words: list[str]) -> None:
    with pytest.raises(ConfigError) as error:
        apply_overrides(PretrainConfig(), {key: value})
    for word in words:
        assert word in str(error.value)


LEVELS = zip("abcdefghi", "bcdefghij", strict=True)
BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n"
BOMB += "".join(f"{name}: &{name} [{', '.join(['*' + inner] * 9)}]\n" for inner, name in LEVELS)
STRANGE = {
    "an alias bomb": (BOMB, r"line 2 has an alias \(\*a\): write the value out"),
    "a list in itself": ("a: &a [*a]", "has an alias"),
    "a key twice": ("epochs: 3\noptim:\n  lr: 1.0\n  lr: 2.0", "line 4 has 'lr' a second time"),
    "merged mappings": ("a: &a {epochs: 1}\nb: {<<: *a}", "has an alias"),
    "deep lists": ("a: " + "[" * 50_000, "nested more than 20 levels deep|exceeded maximum nesting depth"),
    "deep mappings": ("a: " + "{a: " * 5_000, "nested more than 20 levels deep"),
    "a long number": ("epochs: " + "9" * 5_000, "not valid YAML"),
    "no date": ("data: 2020-99-99", "not valid YAML"),
    "a date": ("data: 2020-01-02", "cannot be a date"),
    "bytes": ("data: !!binary aGVsbG8=", "cannot be a bytes"),
    "a set": ("data: !!set {a, b}", "cannot be a set|data must be a name"),
    "a date as name": ("2020-01-02: 3", "must be plain values with names"),
    "a list as name": ("? [1, 2]\n: 3", "not valid YAML"),
    "an object": ("data: !!python/object/apply:os.getcwd []", "not valid YAML"),
    "much text": ("# " + "x" * (1 << 26), "more than 67108864 bytes"),
    "many values": ("data: [" + "x," * 600_000 + "]", "more than 500000 values"),
    "other bytes": ("data: \udcff", "not valid YAML"),
}


@pytest.mark.parametrize(("text", "message"), STRANGE.values(), ids=STRANGE)
def test_a_strangers_recipe_is_refused_at_once(tmp_path: Path, text: str, message: str) -> None:
    path = tmp_path / "recipe.yaml"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    begin = time.process_time()  # a busy machine does not add to it
    with pytest.raises(ConfigError, match=message):
        load(path)
    assert time.process_time() - begin < 5


def test_a_long_list_of_files_is_read(tmp_path: Path) -> None:
    files = [f"/images/of/one/class/{number:06}.jpg" for number in range(20_000)]
    (tmp_path / "many.yaml").write_text(yaml.safe_dump({"data": files}))
    assert load(tmp_path / "many.yaml").data == tuple(files)


def test_text_that_is_not_utf_8_is_quoted() -> None:
    with pytest.raises(ConfigError, match=r"not text in UTF-8, rename it: .*odd.+udcff"):
        load("digits-m", data="odd\udcff")


@pytest.mark.parametrize("given", [{"model.backbone": "resnet50"}, {"model": {"backbone": "resnet50"}}])
def test_another_backbone_has_its_own_arguments(given: dict[str, Any]) -> None:
    model = load("small-images", **given).model
    assert (model.backbone, model.backbone_args) == ("resnet50", {"zero_init_last": False})  # no layers, no channels
    assert (model.stem, model.stem_init) == ("4x4", "whitening")
    other = load("small-images", **{"model.backbone": "convnext_atto"}).model
    assert (other.backbone_args, other.stem, other.stem_init) == ({}, "auto", "timm")
    own = load("small-images", **{"model.backbone": "convnext_atto", "model.backbone_args": {"drop_path_rate": 0.1}})
    assert own.model.backbone_args == {"drop_path_rate": 0.1}
    same = load("small-images", **{"model.backbone": "resnet18"})
    assert same == load("small-images")


def test_dotted_names_in_a_recipe_are_told_how_to_be_written() -> None:
    with pytest.raises(ConfigError, match=r"unknown setting 'optim.lr'. Write it as optim: \{lr: \.\.\.\}\."):
        from_dict({"optim.lr": 0.1})
    with pytest.raises(ConfigError, match="It belongs to the loss ssole or simclr"):
        load("cifar10", **{"loss.name": "vicreg", "loss.temperature": 0.1})


def test_arguments_of_resnets_are_kept_only_for_networks_that_take_them() -> None:
    names: dict[str, str] = {}  # the first of each module of timm
    for name in timm.list_models("*resne*", exclude_filters="ssole*"):  # which other tests may have registered
        names.setdefault(timm.models.model_entrypoint(name).__module__, name)
    assert len(names) > 8
    for name in names.values():
        kept = "zero_init_last" in load("cifar10", **{"model.backbone": name}).model.backbone_args
        takes_it = nullcontext() if kept else pytest.raises(TypeError, match="zero_init_last")
        with torch.device("meta"), takes_it:
            timm.create_model(name, num_classes=0, zero_init_last=False)
