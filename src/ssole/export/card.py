"""Model card: the README.md of an exported folder."""

from __future__ import annotations

import re
from contextlib import suppress
from pathlib import Path
from typing import Any

from ssole import __version__
from ssole.config import ConfigError, PretrainConfig
from ssole.evaluation.results import EvaluationResult
from ssole.export.formats import Written
from ssole.models.load import LoadedBackbone
from ssole.training.run import Run


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
