"""Initial weights from a run, a weight file or timm (`init`).

They are written as the run's checkpoint of step 0, so resuming does not need their source. `init.json` says what was
loaded.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from ssole import distributed
from ssole.config import ConfigError, ModelConfig, PretrainConfig
from ssole.errors import listed, printable, quoted
from ssole.files import write_json_atomically
from ssole.models.backbone import Encoder, checked_encoder
from ssole.models.custom import is_custom, network_errors
from ssole.models.weights_file import SUFFIXES, classifier_prefixes, is_count, misfits, not_finite, read_weights
from ssole.progress import say
from ssole.training.checkpoint import newest_weights
from ssole.training.run import Run, writing
from ssole.training.step import Learner

PRETRAINED = "timm"
"""Value of `init` for timm's pretrained weights."""
_LISTED = 5  # weights that a summary names; init.json names all


@dataclass(frozen=True, kw_only=True)
class InitialWeights:
    """Weights to start from, and how they fit the encoder."""

    source: str
    """Where they came from: the setting `init`."""
    weights: dict[str, torch.Tensor]
    """Weights that were found for the encoder, under its names."""
    new: list[str]
    """Weights of the encoder that were not found, and start as they do without `init`."""
    unused: list[str]
    """Weights of the source that the encoder does not have."""

    def summary(self) -> str:
        """Summary of the weights that were loaded, are new, or were left out, in one line."""
        parts = [f"starting from {self.source}: {len(self.weights)} weights loaded"]
        parts += [f"new: {listed(self.new, _LISTED)}"] if self.new else []
        parts += [f"left out: {listed(self.unused, _LISTED)}"] if self.unused else []
        return printable("; ".join(parts))

    def load_into(self, learner: Learner, run: Run) -> None:
        """Load these weights into the learner of a new run, and write its init.json."""
        learner.encoder.load_state_dict(self.weights, strict=False)  # `read_initial_weights` has compared the names
        facts = {"init": self.source, "loaded": sorted(self.weights), "new": self.new, "unused": self.unused}
        with writing(run, "init.json"):
            write_json_atomically(run.path / "init.json", facts)


def read_initial_weights(config: PretrainConfig, encoder: Encoder, *, progress: bool = False) -> InitialWeights | None:
    """Initial weights that a config names by `init`, or that a custom module brings with it; None without either.

    All weights of the backbone must be there, unless `init_partial` is set. A classifier is left out. The projector is
    taken from a run or checkpoint, if it has the same shape; a new one is no error. With `progress`, what was loaded by
    `init` is printed.

    A ConfigError for no such file, a damaged one, one of another kind or network, or if timm's weights cannot be had.
    The message names the weights that are missing, unexpected, of another shape or not finite.
    """
    if is_custom(config.model):
        if config.init is not None:
            raise ConfigError("a module of your own starts from the weights that it has: load them first, without init")
        weights = {f"backbone.{name}": tensor for name, tensor in encoder.backbone.state_dict().items()}
        new = [name for name in encoder.state_dict() if name not in weights]
        return InitialWeights(source=config.model.backbone, weights=weights, new=new, unused=[])
    if config.init is None:
        return None
    backbone, projector, unused = _split(_read(config.init, config))
    own, heads = encoder.backbone.state_dict(), classifier_prefixes(encoder.backbone)
    wrong = misfits(backbone, own, extra_prefixes=heads)
    problems = "; ".join(f"{len(names)} {what} ({', '.join(names)})" for what, names in wrong.items())
    if problems and not config.init_partial:
        raise ConfigError(
            f"{config.init} does not fit the backbone {config.model.backbone}: {problems}. {_advice(config.init)}, or "
            "load what fits by --init-partial"
        )
    fitting = {name: x for name, x in backbone.items() if name in own and x.shape == own[name].shape}
    if not fitting:
        raise ConfigError(f"{config.init} has no weight of the backbone {config.model.backbone}: {problems}")
    weights = {f"backbone.{name}": tensor for name, tensor in fitting.items()}
    if not misfits(projector, encoder.projector.state_dict()):
        weights |= {f"projector.{name}": tensor for name, tensor in projector.items()}
        projector = {}
    if bad := not_finite(weights):
        raise ConfigError(f"{config.init} has weights that are not finite: {listed(bad, _LISTED)}")
    new = [name for name in encoder.state_dict() if name not in weights and not is_count(name)]
    left = sorted([*(backbone.keys() - fitting.keys()), *(f"projector.{name}" for name in projector), *unused])
    initial = InitialWeights(source=config.init, weights=weights, new=new, unused=left)
    say(initial.summary(), enabled=progress)
    return initial


def with_absolute_init(config: PretrainConfig) -> PretrainConfig:
    """Config whose initial weights are found from any working folder."""
    if config.init in (None, PRETRAINED):
        return config
    return replace(config, init=str(Path(config.init).absolute()))


def initial_weights(
    config: PretrainConfig, module: nn.Module | None = None, *, progress: bool = False
) -> InitialWeights | None:
    """:func:`read_initial_weights` by the first process, on an encoder made and checked for it; None in the others."""
    found: list[InitialWeights | None] = []

    def read() -> None:
        found.append(read_initial_weights(config, checked_encoder(config, module), progress=progress))

    distributed.on_rank_0(read)  # `read` returns nothing, because results must be JSON
    return found[0] if found else None


def _read(init: str, config: PretrainConfig) -> dict[str, torch.Tensor]:
    """Tensors of a source by their names in it."""
    if init == PRETRAINED:
        return _pretrained(config.model, config.input_channels)
    path = Path(init)
    if path.is_dir():
        run = Run(path)
        _ = run.config  # an error for a folder that is no run
        if (weights := newest_weights(run)) is not None:
            return weights
        if run.finished:
            return read_weights(run.backbone_path)
        go_on = f"go on with it by ssole pretrain --resume {quoted(path)}"
        raise ConfigError(f"init: {path} has no checkpoint yet: {go_on}")
    if not path.exists():
        raise ConfigError(f"init: there is no {path}. Give a run folder, a .safetensors or .pth file, or timm")
    if path.suffix.lower() not in SUFFIXES:
        raise ConfigError(f"init is a run folder, a file ({', '.join(SUFFIXES)}), or timm, got {init!r}")
    return read_weights(path)


def _pretrained(model: ModelConfig, channels: int) -> dict[str, torch.Tensor]:
    """timm's pretrained weights, which it downloads once and keeps."""
    import timm

    arguments = {**model.backbone_args, **({"in_chans": channels} if channels != 3 else {})}
    what = f"init: timm's pretrained weights of {model.backbone} cannot be had"
    advice = "Where there is no network, download them elsewhere and give the file: --init model.safetensors"
    with network_errors(what, advice), torch.random.fork_rng(devices=[]):
        network: nn.Module = timm.create_model(model.backbone, pretrained=True, num_classes=0, **arguments)
    return network.state_dict()


def _split(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], list[str]]:
    """Weights of the backbone and of the projector under their own names, and the names of all others."""
    tensors = {name: tensor for name, tensor in tensors.items() if not name.startswith("optimizer.")}
    for prefix in ("encoder.", ""):
        if any(name.startswith(f"{prefix}backbone.") for name in tensors):
            known = f"{prefix}backbone.", f"{prefix}projector."
            backbone, projector = (
                {name.removeprefix(part): tensor for name, tensor in tensors.items() if name.startswith(part)}
                for part in known
            )
            return backbone, projector, [name for name in tensors if not name.startswith(known)]
    return dict(tensors), {}, []


def _advice(init: str) -> str:
    config = Path(init) / "config.yaml"
    if config.is_file():
        return f"Take the network of that run (--recipe {config})"
    return "Choose the same network (--model.backbone, --model.backbone-args, and --model.stem timm for large images)"
