"""Models that can be evaluated: a run, a network of timm or torchvision, a file of weights, an ONNX file, a module."""

from __future__ import annotations

import difflib
import hashlib
import json
import logging
import warnings
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from importlib.util import find_spec
from os import PathLike
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssole.config import ConfigError, PretrainConfig
from ssole.errors import one_line
from ssole.evaluation.features import frozen
from ssole.evaluation.preprocessing import Preprocessing
from ssole.models.load import LoadedBackbone, described, load, max_unreadable
from ssole.models.timm_registry import register_with_timm
from ssole.models.weights_file import SUFFIXES, classifier_prefixes, load_whole, read_weights
from ssole.runtime import out_of_memory_reason

IMAGENET = {"image_size": 224, "mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
"""Preprocessing that torchvision's weights were trained with, and that is assumed of its networks."""
_LIBRARIES = ("timm:", "torchvision:")
_SCHEMES = ("local-dir:", "hf-hub:", "hf_hub:")  # after timm's prefix: places that timm itself opens
_NO_PLACE = "give a run folder or its backbone.safetensors, timm:NAME, torchvision:NAME, timm:NAME=FILE, or FILE.onnx"


ModelOrRun = nn.Module | str | PathLike[str] | Any
"""Module that returns features (B, F); or a run folder, its ``backbone.safetensors``, or the Run of pretraining; or
anything else that :func:`open_model` opens."""


class UnavailableError(ConfigError):
    """Error for pretrained weights that cannot be had here, such as without a network."""


def open_model(given: nn.Module | str | PathLike[str] | Any) -> nn.Module:
    """Module that maps images to features (B, F), in evaluation mode on the CPU.

    Args:
        given: one of

            - a module, which is returned as it is; one of timm or torchvision with its classifier is a warning;
            - a run folder, its ``backbone.safetensors``, or a Run;
            - ``timm:NAME`` or ``torchvision:NAME``: a network with its pretrained weights, which may be downloaded
              (``timm:local-dir:FOLDER`` is a folder that `ssole export --to timm` wrote);
            - ``timm:NAME=FILE`` or ``torchvision:NAME=FILE``: the same network with the weights of a file;
            - a file that ends in ``.onnx``.

    Raises:
        UnavailableError: pretrained weights that cannot be had.
        ConfigError: anything else that cannot be opened; the message says what to do.
    """
    if isinstance(given, nn.Module):
        _warn_of_classifier(given)
        return given
    place = getattr(given, "path", given)
    if not isinstance(place, (str, PathLike)):
        kind = type(given).__name__
        raise ConfigError(f"a model is a torch module, a run, or text that names one, got a {kind}: {_NO_PLACE}")
    text = str(place)
    if text.startswith(_LIBRARIES):
        library, _, name = text.partition(":")
        return (_timm if library == "timm" else _torchvision)(name).eval()
    path = Path(text)
    if path.suffix.lower() == ".onnx":
        return OnnxModel(path)
    is_weights = path.suffix.lower() in SUFFIXES and path.is_file()
    if is_weights and (path.suffix.lower() != ".safetensors" or described(path) is None):
        raise ConfigError(f"{path} does not say which network its weights belong to: give timm:NAME={path}")
    if not path.exists():
        raise ConfigError(f"there is no {path}: {_NO_PLACE}")
    return load(given)


def model_and_preprocessing(given: ModelOrRun, **overrides: Any) -> tuple[nn.Module, Preprocessing]:
    """Model that a user gave, or that of a run, and its preprocessing, of which `overrides` replace a part."""
    model = open_model(given)
    preprocessing = Preprocessing.from_model(model, **overrides)
    if overrides.get("image_size") is not None and not isinstance(given, nn.Module):
        size = preprocessing.image_size
        try:  # whether the network takes images of a size that it was perhaps not made for
            with frozen(model, torch.device("cpu")):
                model(torch.zeros(1, preprocessing.channels or 3, size, size))
        except (AssertionError, RuntimeError) as error:  # what timm and torch raise
            raise ConfigError(f"the network does not take images of {size} x {size} pixels: {error}") from None
    return model, preprocessing


def _warn_of_classifier(model: nn.Module) -> None:
    """Warn of a network of timm or torchvision that gives the scores of classes, not features."""
    scores, how = 0, "model.reset_classifier(0)"
    if all(hasattr(model, name) for name in ("num_classes", "get_classifier", "reset_classifier")):  # as in timm
        scores = 0 if isinstance(model.get_classifier(), nn.Identity) else model.num_classes  # type: ignore[operator, assignment]
    elif type(model).__module__.startswith("torchvision.models"):
        name, last = [(name, part) for name, part in model.named_modules() if not any(part.children())][-1]
        scores = last.out_features if isinstance(last, nn.Linear) else 0
        how = f'model.set_submodule("{name}", torch.nn.Identity())'
    if scores:
        kind = type(model).__name__
        warnings.warn(
            f"{kind} still has its classifier, so its features are {scores:,} scores of classes. For the features "
            f"before it, remove it: {how}",
            stacklevel=4,
        )


def is_run(given: Any) -> bool:
    """Whether this is a run or a run's weight file, from which the untrained network can be built too."""
    text = getattr(given, "path", given)
    if isinstance(given, nn.Module) or not isinstance(text, (str, PathLike)):
        return False
    text = str(text)
    return not text.startswith(_LIBRARIES) and Path(text).suffix.lower() != ".onnx"


def most_unreadable(models: Iterable[Any]) -> float:
    """Largest share of unreadable images that runs, loaded or not, were trained with; of other models, the default."""
    shares = [PretrainConfig.max_unreadable]
    for one in models:
        if isinstance(one, LoadedBackbone):
            shares.append(one.max_unreadable)
        elif is_run(one):
            shares.append(max_unreadable(one))
    return max(shares)


def name_of(given: Any) -> str:
    """Short name of a model for a table."""
    if isinstance(given, nn.Module):
        return type(given).__name__
    text = str(getattr(given, "path", given))
    if text.startswith(_LIBRARIES):
        head, _, file = text.partition("=")
        return f"{head}={Path(file).name}" if file else head
    return Path(text).resolve().name


class OnnxModel(nn.Module):
    """Network of an ONNX file, run by onnxruntime on the CPU.

    Calling it maps float images (B, C, S, S) to float32 features (B, F), the first output of the graph. A file of
    `ssole export --to onnx` says its image size and normalises images itself; of others, ``mean`` and ``std`` are to be
    given to the evaluation.

    Raises:
        ConfigError: onnxruntime is missing, the file cannot be read, or it does not take a batch of images.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self._path = path
        if not path.is_file():
            raise ConfigError(f"there is no file {path}: {_NO_PLACE}")
        if find_spec("onnxruntime") is None:
            raise ConfigError("an ONNX file needs onnxruntime: pip install 'ssole[export]'")
        import onnxruntime

        try:
            self._session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime has a kind of error for each kind of damage
            raise ConfigError(f"onnxruntime cannot read {path}: {one_line(error)}") from error
        inputs = self._session.get_inputs()
        shape = inputs[0].shape
        any_batch = not isinstance(shape[0], int)  # a name or None
        if len(inputs) != 1 or len(shape) != 4 or inputs[0].type != "tensor(float)" or not (any_batch or shape[0] == 1):
            found = ", ".join(f"{one.name} {one.type} {one.shape}" for one in inputs)
            raise ConfigError(f"{path} takes {found}; float images (batch, channels, side, side) are needed")
        self._input, self._one_by_one = inputs[0].name, not any_batch
        digest = bytearray(hashlib.sha256(path.read_bytes()).digest())
        self.register_buffer("file_hash", torch.frombuffer(digest, dtype=torch.uint8))  # its state, as weights are
        self.pretrained_cfg = {"input_size": [size if isinstance(size, int) else None for size in shape[1:]]}
        described = self._session.get_modelmeta().custom_metadata_map.get("preprocessing", "")
        with suppress(ValueError, KeyError, TypeError):  # nothing, or not what `ssole export` writes
            facts = json.loads(described)
            size, channels = int(facts["image_size"]), int(facts["channels"])
            self.image_size, self.mean, self.std = size, (0.0,) * channels, (1.0,) * channels

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        batches = images.float().cpu().contiguous().split(1 if self._one_by_one else len(images))
        try:
            rows = [torch.from_numpy(self._session.run(None, {self._input: one.numpy()})[0]) for one in batches]
        except Exception as error:  # onnxruntime's kinds of errors have no common base
            if out_of_memory_reason(error):
                raise
            shape = list(images.shape)
            raise ConfigError(f"{self._path} does not take images of shape {shape}: {one_line(error)}") from None
        return torch.cat(rows).to(images.device)


def _timm(name: str) -> nn.Module:
    import timm

    file = ""
    if name.startswith(_SCHEMES):
        register_with_timm()  # the folder may hold a small-image ResNet of an export
        if name.startswith("local-dir:") and not Path(name.removeprefix("local-dir:")).is_dir():
            raise ConfigError(f"there is no folder {name.removeprefix('local-dir:')}")
    else:
        name, equals, file = name.partition("=")
        if equals and not file:
            raise ConfigError(f"timm:{name}= names no file of weights: give timm:{name}=FILE, or timm:{name} alone")
        if not timm.is_model(name):
            raise _unknown("timm", name, timm.list_models())
        tagged = timm.list_pretrained(f"{name.partition('.')[0]}.*")
        if not file and "." in name and name not in tagged:
            raise _unknown("timm", name, tagged)
    if not file:
        with _download_of(f"timm:{name}"):
            model: nn.Module = timm.create_model(name, pretrained=True, num_classes=0)
        return model
    model = timm.create_model(name, pretrained=False, num_classes=0)
    prefixes = classifier_prefixes(model)
    load_whole(model, read_weights(Path(file)), source=file, network=f"timm:{name}", extra_prefixes=prefixes)
    return model


def _torchvision(name: str) -> nn.Module:
    import torchvision

    name, _, file = name.partition("=")
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        raise _unknown("torchvision", name, known)
    # these two normalise their input anew, which torchvision tells them only when it loads their weights itself
    options = {"init_weights": False, "transform_input": True} if name in ("googlenet", "inception_v3") else {}
    model: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    facts: dict[str, Any] = dict(IMAGENET)
    if file:
        weights = read_weights(Path(file))
    else:
        default = torchvision.models.get_model_weights(name).DEFAULT
        how = default.transforms()
        facts = {"image_size": how.crop_size[0], "mean": tuple(how.mean), "std": tuple(how.std)}
        with _download_of(f"torchvision:{name}"):
            weights = default.get_state_dict(progress=False, check_hash=True, weights_only=True)
    linear = [place for place, module in model.named_modules() if isinstance(module, nn.Linear)]
    if not linear:
        raise ConfigError(f"torchvision:{name} has no linear classifier to leave out, so its features are not known")
    model.set_submodule(linear[-1], nn.Identity())  # the last one defined is the classifier
    load_whole(
        model, weights, source=file or "torchvision", network=f"torchvision:{name}", extra_prefixes=(f"{linear[-1]}.",)
    )
    for key, value in facts.items():
        setattr(model, key, value)
    return model


@contextmanager
def _download_of(name: str) -> Iterator[None]:
    """Context of what may download weights; UnavailableError if it fails. The Hub client's retries are not logged."""
    client = logging.getLogger("huggingface_hub")
    level = client.level
    client.setLevel(logging.ERROR)
    try:
        yield
    except Exception as error:  # the libraries for downloads have a kind of error for each way to fail
        reason = one_line(error).partition(". ")[0][:160]
        raise UnavailableError(f"{name}: its pretrained weights cannot be had here ({reason})") from error
    finally:
        client.setLevel(level)


def _unknown(library: str, name: str, known: list[str]) -> ConfigError:
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {library}:{close[0]}?" if close else f"{library} lists the names of its models"
    return ConfigError(f"{library} has no model {name!r}: {hint}")
