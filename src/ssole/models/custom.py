"""Custom backbone: a module from Python in place of timm's, which gives features (B, F)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from numbers import Number
from typing import Any

import numpy as np
import torch
from torch import nn

from ssole.config import ConfigError, ModelConfig
from ssole.errors import listed, one_line
from ssole.models.weights_file import digest_of
from ssole.runtime import out_of_memory_reason

_MARK = "module:"
_PLAIN = (Number, str, list, tuple, dict)  # attributes that tell modules apart


def custom_name(module: nn.Module) -> str:
    """Value of `model.backbone` that records a custom module by its class; a ConfigError for any other object."""
    if not isinstance(module, nn.Module):
        raise ConfigError(
            f"backbone is a module of your own, got {module!r}; a network of timm is a setting, such as "
            '**{"model.backbone": "resnet18"}'
        )
    return f"{_MARK}{type(module).__qualname__}"


def custom_settings(module: nn.Module) -> dict[str, Any]:
    """Settings of the model, by dotted name, for a custom module; those of timm's networks do not apply to it."""
    return {
        "model.backbone": custom_name(module),
        "model.backbone_args": {},
        "model.stem": "timm",
        "model.stem_init": "timm",
    }


def is_custom(config: ModelConfig) -> bool:
    """Whether a config records a custom module as its backbone."""
    return config.backbone.startswith(_MARK)


def missing_module_error(config: ModelConfig) -> ConfigError:
    """Error for a config that records a module, which was not given again."""
    return ConfigError(
        f"the backbone is code from Python ({config.backbone.removeprefix(_MARK)}), which no recipe or run folder "
        "holds: pass backbone=module to ssole.pretrain, ssole.resume, ssole.extend or ssole.load, and what ssole.load "
        "returns to ssole.evaluate and ssole.embed"
    )


def identity_of(module: nn.Module, *, but: Collection[str] = ()) -> str:
    """Text that tells a module from others: its `repr`, and a digest of its plain attributes, tensors and buffers.

    Plain are numbers, texts, NumPy arrays, and lists, tuples and dicts. Weights do not count, because a module may be
    made with random ones; nor do buffers named in `but`.
    """
    facts, tensors = _attributes(module, but)
    return f"{_without_addresses(module)} {digest_of(tensors, _without_addresses(facts))[:16]}"


def digests_of(module: nn.Module, *, but: Collection[str] = ()) -> dict[str, str]:
    """Short digests, by dotted name, of the attributes, tensors and buffers that :func:`identity_of` compares."""
    facts, tensors = _attributes(module, but)
    found = {f"{name}.{key}": digest_of({}, _without_addresses(x)) for name, part in facts for key, x in part.items()}
    found |= {name: digest_of({"": tensor}, "") for name, tensor in tensors.items()}
    return {name.lstrip("."): digest[:8] for name, digest in found.items()}


def which_differ(before: object, now: object) -> str:
    """End of a sentence with the names under which two modules have other digests; empty if a record is missing."""
    if not isinstance(before, dict) or not isinstance(now, dict):
        return ""
    names = sorted(name for name in before.keys() | now.keys() if before.get(name) != now.get(name))
    return f"; they differ in {listed(names, 5)}" if names else ""


def _attributes(
    module: nn.Module, but: Collection[str]
) -> tuple[list[tuple[str, dict[str, Any]]], dict[str, torch.Tensor]]:
    """Plain attributes of each part of a module; and its tensors, and buffers not named in `but`."""
    facts, tensors = [], {name: buffer for name, buffer in module.named_buffers() if name not in but}
    for name, part in module.named_modules():
        public = {key: value for key, value in vars(part).items() if not key.startswith("_") and key != "training"}
        public = {key: value.tolist() if isinstance(value, np.ndarray) else value for key, value in public.items()}
        facts.append((name, {key: value for key, value in public.items() if isinstance(value, _PLAIN)}))
        tensors |= {f"{name}.{key}": x.to_dense() for key, x in public.items() if isinstance(x, torch.Tensor)}
    return facts, tensors


def _without_addresses(value: object) -> str:
    """`repr` without the places of functions in memory, which differ between processes."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(value))


@contextmanager
def network_errors(what: str, advice: str = "") -> Iterator[None]:
    """Context in which an exception, of any type as networks raise them, is a ConfigError, unless memory ran out."""
    try:
        yield
    except Exception as error:
        if isinstance(error, ConfigError) or out_of_memory_reason(error):
            raise
        reason = one_line(error).rstrip(".") or type(error).__name__
        raise ConfigError(f"{what}: {reason}{advice and f'. {advice}'}") from None


class CustomBackbone(nn.Module):
    """Custom module as a backbone: normalised images (B, C, S, S) to features (B, F).

    The module returns such features, maps (B, F, h, w), which are averaged, or what models of Hugging Face's
    transformers return: their `pooler_output`, or else the first token of `last_hidden_state` (B, T, F).

    The module is used itself, not a copy. A trial on zeros of size S and channels C tells F, its `num_features`; it is
    a ConfigError if the module does not take them, or returns something else.
    """

    def __init__(self, module: nn.Module, image_size: int, channels: int) -> None:
        super().__init__()
        self.module = module
        was_training = module.training
        like = next(iter(module.parameters()), torch.empty(0))
        images = torch.zeros(2, channels, image_size, image_size, device=like.device)
        what = f"the backbone {type(module).__name__} does not take images {tuple(images.shape)}"
        errors = network_errors(what, "Choose another augment.crops.N.size, or another module")
        with errors, torch.random.fork_rng(devices=[]), torch.no_grad():
            features = self.eval()(images)
        self.train(was_training)
        self.num_features = int(features.shape[1])

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return _features(self.module(images), len(images))


def _features(output: Any, images: int) -> torch.Tensor:
    """Features (B, F) in the output of a module."""
    if isinstance(output, torch.Tensor):
        found: Any = output
    elif (found := getattr(output, "pooler_output", None)) is None:
        tokens = getattr(output, "last_hidden_state", None)
        found = tokens[:, 0] if isinstance(tokens, torch.Tensor) and tokens.ndim == 3 else tokens
    if isinstance(found, torch.Tensor) and found.ndim == 4:
        found = found.mean(dim=(2, 3))
    if not isinstance(found, torch.Tensor) or found.ndim != 2 or len(found) != images or not found.is_floating_point():
        what = tuple(found.shape) if isinstance(found, torch.Tensor) else type(output).__name__
        raise ConfigError(
            f"a backbone returns features ({images}, F) for {images} images, or an object with pooler_output or "
            f"last_hidden_state, and this one returned {what}"
        )
    return found
