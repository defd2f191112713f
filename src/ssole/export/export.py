"""Export of a backbone: write, read back, compare, and describe in a model card, the README.md of the folder."""

from __future__ import annotations

import re
from contextlib import suppress
from os import PathLike
from pathlib import Path
from typing import Any

import torch

from ssole import __version__
from ssole.config import ConfigError, PretrainConfig
from ssole.errors import did_you_mean
from ssole.evaluation.checks import check_features
from ssole.evaluation.results import EvaluationResult
from ssole.export.formats import FORMATS, Format, NormalisedBackbone, Written
from ssole.files import folder_atomically, require_new_folder
from ssole.models.load import LoadedBackbone, folder_beside, load, weights_path
from ssole.training.run import Run

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


def model_card(model: LoadedBackbone, written: Written, *, weights: Path, difference: float) -> str:
    """Text of the card: what the model is, how to load it, its input, how it was made, its evaluation.

    ``model`` is the source and ``weights`` its file, whose folder is asked for the run's settings and evaluation.
    ``difference`` is the largest one between features of source and result.
    """
    run, config, metrics = Run(weights.parent), None, list[dict[str, Any]]()
    with suppress(ConfigError):  # of a weight file alone, or damaged
        config = run.config
        metrics = run.metrics
    kept = re.fullmatch(r"backbone-step-(\d+)", weights.stem)  # weights that an extension kept
    step = kept[1] if kept else None
    header = ["---", *([f"library_name: {written.library}"] if written.library else [])]
    with_labels = _learned_from_labels(config)
    labels = "" if with_labels is None else f", trained {'with' if with_labels else 'without'} labels"
    tags = ["- ssole", *(["- self-supervised"] if with_labels is False else [])]
    header += ["pipeline_tag: image-feature-extraction", "tags:", *tags, "---", ""]
    backbone, size, channels = model.config["model"]["backbone"], model.image_size, len(model.mean)
    same = f"differ from those of the source by at most {difference:.1g}" if difference else "equal those of the source"
    checked = f"Its features {same} on random images"
    checked += f" ({written.unchecked})." if written.unchecked else "."
    parts = [
        f"# {_code(backbone)}{labels}",
        f"Backbone that maps images to {model.num_features} features, exported by ssole {__version__}. {checked}",
        f"## Load it\n\nIn this folder, with {written.needs}:\n\n```python\n{written.snippet}\n```",
        f"## Input\n\n{channels} channels of {size} x {size} pixels, as {written.input}. Resize the shorter side to "
        f"{size} (bilinear, antialiased), cut out the central square, and scale to [0, 1].\n\n"
        f"| | |\n|---|---|\n| mean | {_numbers(model.mean)} |\n| std | {_numbers(model.std)} |",
        *([] if config is None else [_training(config, metrics, step)]),
        _evaluation(weights, step),
    ]
    return "\n".join(header) + "\n\n".join(parts) + "\n"


def _learned_from_labels(config: PretrainConfig | None) -> bool | None:
    """Whether weights were trained with labels; None if unknown.

    It is unknown of a weight file alone, with a custom loss, and of a run that began from other weights.
    """
    if config is not None and config.loss.name == "supervised":
        return True
    return None if config is None or config.loss.name == "custom" or config.init is not None else False


def _training(config: PretrainConfig, metrics: list[dict[str, Any]], step: str | None) -> str:
    steps = int(step) if step else max((row["step"] for row in metrics), default=None)
    data = [config.data] if isinstance(config.data, str) else list(config.data)
    names = ", ".join(_code(Path(name).name) for name in data[:3]) + (", ..." if len(data) > 3 else "")
    rows = {
        "images": names,  # the last part of paths alone: a card is for others to read
        **({} if config.init is None else {"began from": _code(Path(config.init).name)}),
        "loss": _code(config.loss.name),
        "views of an image": str(config.augment.views),
        "steps": f"{steps} of {config.batch_size} images" if steps is not None else "unknown",
    }
    lines = [f"| {name} | {value} |" for name, value in rows.items()]
    return "## Training\n\n| | |\n|---|---|\n" + "\n".join(lines)


def _evaluation(weights: Path, step: str | None) -> str:
    path = weights.with_name(f"evaluation-step-{step}.json" if step else "evaluation.json")
    if not path.is_file():
        how = f"`ssole eval {weights.name} --save {path.name}`" if step else "`ssole eval`"
        return f"## Evaluation\n\nNot measured: {how} measures it, and an export after that has the table."
    result = EvaluationResult.load(path)
    heading, *rows = result.cells()
    table = [heading, ["---"] * len(heading), *rows]
    lines = ["| " + " | ".join(map(_plain, line)) + " |" for line in table]
    where = f"Frozen features; test: {_plain(result.test)}." if result.test else f"Images: {_plain(result.train)}."
    notes = "".join(f"\n- {_plain(note)}" for note in result.notes)
    return "## Evaluation\n\n" + where + "\n\n" + "\n".join(lines) + ("\n" + notes if notes else "")


def _numbers(values: tuple[float, ...]) -> str:
    return ", ".join(f"{value:.6g}" for value in values)


def _code(text: str) -> str:
    return "`" + text.replace("`", "'") + "`"


def _plain(text: str) -> str:
    """Text from outside, such as names of data sets and classes, escaped for Markdown."""
    return "".join(f"\\{c}" if c in "\\`*_{}[]<>#|" else c for c in text.replace("\n", " "))
