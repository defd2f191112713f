"""Export of a backbone: write, read back, compare, describe."""

from __future__ import annotations

from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ssole.config import ConfigError
from ssole.errors import did_you_mean
from ssole.evaluation.checks import check_features
from ssole.export.card import model_card
from ssole.export.formats import FORMATS, Format, NormalisedBackbone, Written
from ssole.files import folder_atomically, require_new_folder
from ssole.models.load import LoadedBackbone, folder_beside, load, weights_path

TOLERANCE = 1e-5
"""Largest difference between features of source and result, relative to the largest feature where that is above 1."""
_BATCHES = (1, 3)  # sizes that are compared; two of them show a batch size that became a constant


def export(run: str | PathLike[str] | Any, *, to: Format, out: str | PathLike[str] | None = None) -> Path:
    """Write a trained backbone in the format of another library, with its normalisation and a model card.

        folder = ssole.export("runs/mine", to="timm")
        model = timm.create_model(f"local-dir:{folder}", pretrained=True)

    The result is read back, and its features of random images are compared with those of the source. The folder appears
    only if they agree to 1e-5.

    Args:
        run: a run folder, a `backbone.safetensors`, or a :class:`Run`.
        to: `timm` (config.json and model.safetensors), `hf` (the same, for transformers' AutoModel), `torchvision`
            (weights for torchvision's models), `onnx` or `torch-export` (programs for any batch size, which take images
            in [0, 1] and normalise them).
        out: folder to write; by default `export/FORMAT` in the run folder. It must not exist or be empty.

    Returns:
        The folder. Its README.md shows the code that loads it.

    Raises:
        ConfigError: an unfinished run, an unknown format, a folder that is not empty, a missing package, or a backbone
            that the format cannot hold; the message says what to do.
        ValueError: weights that give features that are not finite.
    """
    write = FORMATS.get(to)
    if write is None:
        hint = did_you_mean(to, FORMATS) or f" Choose from {', '.join(FORMATS)}."
        raise ConfigError(f"there is no format {to!r}.{hint}")
    weights = weights_path(run)
    folder = Path(out) if out is not None else folder_beside(weights, "export") / to
    require_new_folder(folder)
    model = load(run)
    with folder_atomically(folder) as new:
        written = write(model, new)
        difference = _compare(model, written)
        if not difference <= TOLERANCE:
            raise ConfigError(
                f"the {to} export of {weights} differs from its source by {difference:.2g}, more than {TOLERANCE:g}, "
                f"so it was not kept: {to} cannot hold this backbone; try another format"
            )
        card = model_card(model, written, weights=weights, difference=difference)
        (new / "README.md").write_text(card, encoding="utf-8", errors="backslashreplace")  # names need not be text
    return folder


@torch.inference_mode()
def _compare(model: LoadedBackbone, written: Written) -> float:
    source = NormalisedBackbone(model, model.mean, model.std).eval()
    generator = torch.Generator().manual_seed(0)
    differences = []
    for count in _BATCHES:
        images = torch.rand(count, len(model.mean), model.image_size, model.image_size, generator=generator)
        expected, found = source(images), written.features(images)
        check_features(expected, "features of random images")
        if found.shape != expected.shape:
            return float("inf")
        differences.append((expected - found).abs().max() / expected.abs().max().clamp(min=1))
    return float(torch.stack(differences).max())  # NaN if any is
