"""The smallest runs that still do all that a run does: 22 images of 12 pixels, 12 steps of 4, a few hundred weights.

They use one thread: for work this small, a second one only waits, and for long on a busy machine.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from torch import nn

from ssole import api, cli
from ssole.config import PretrainConfig, apply_overrides, from_dict
from ssole.training.loop import Given
from ssole.training.run import Run

IMAGES = 22
STEPS_PER_EPOCH = 5  # the last two images of an epoch's order are left out
STEPS = 12
SETTINGS: dict[str, Any] = {
    "steps": STEPS,
    "batch_size": 4,
    "log_every": 1,
    "checkpoint_seconds": 0.0,
    "device": "cpu",
    "precision": "float32",
    "deterministic": True,
    "augment": {"crops": [{"count": 2, "size": 8}]},
    "model": {
        "backbone": "resnet18",
        "backbone_args": {"layers": [1, 1, 1, 1], "channels": [8, 8, 8, 16]},
        "projector_dim": 8,
        "projector_hidden": 8,
    },
    "optim": {"lr": 0.1, "final_lr": 0.0},
}


def images(n: int = IMAGES, size: int = 12) -> NDArray[np.uint8]:
    """uint8 (n, size, size, 3), each of a colour of its own under noise."""
    random = np.random.default_rng(0)
    noise = random.integers(0, 128, (n, size, size, 3))
    return (noise + random.integers(0, 128, (n, 1, 1, 3))).astype(np.uint8)


def config(**overrides: Any) -> PretrainConfig:
    """The tiny settings, with dots for double underscores in names: optim__lr=1."""
    return apply_overrides(from_dict(SETTINGS), {name.replace("__", "."): value for name, value in overrides.items()})


class Crash(BaseException):
    """End of a run in the middle, as by a kill: nothing reacts to it, as it would to an `Exception`."""


def crash(backbone: nn.Module) -> dict[str, float]:
    """Evaluator that ends its run."""
    raise Crash


def figures(run: Run) -> list[dict[str, Any]]:
    """The metrics, without what a clock says."""
    clock = {"seconds", "images_per_second", "data_wait"}
    return [{name: value for name, value in row.items() if name not in clock} for row in run.metrics]


def start(
    out: Path,
    *,
    data: Any = None,
    loss: nn.Module | Mapping[str, Any] | None = None,
    evaluators: Mapping[int, Any] | None = None,
    **overrides: Any,
) -> Run:
    """Train the tiny settings, on the tiny images."""
    torch.set_num_threads(1)
    data = images() if data is None else data
    module = loss if isinstance(loss, nn.Module) else None
    if loss is not None:
        overrides["loss"] = loss if module is None else {"name": "custom", "module": type(module).__qualname__}
    return api.start(config(**overrides), out, Given(loss=module, evaluators=evaluators, progress=False), data=data)


def resume(run: Run | Path, *, data: Any = None, **settings: Any) -> Run:
    torch.set_num_threads(1)
    return api.resume(run, data=images() if data is None else data, progress=False, **settings)


def main(*arguments: str) -> int:
    """`ssole ARGUMENTS` in this process: its exit code."""
    torch.set_num_threads(1)
    try:
        cli.main(arguments)
    except SystemExit as end:
        return int(end.code or 0)
    raise AssertionError("the command line did not exit")


def recipe(folder: Path, **changes: Any) -> str:
    """The tiny settings as a recipe, for the command line."""
    path = folder / "tiny.yaml"
    path.write_text(yaml.safe_dump(SETTINGS | changes))
    return str(path)


def write_folder(root: Path, n: int = IMAGES, *, classes: tuple[str, ...] = ("cat", "dog"), size: int = 12) -> Path:
    """The tiny images as PNG files in sub-folders."""
    from PIL import Image

    for name in classes:
        (root / name).mkdir(parents=True)
    for number, image in enumerate(images(n, size)):
        Image.fromarray(image).save(root / classes[number % len(classes)] / f"{number:03}.png")
    return root


def command(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    """`ssole ARGUMENTS`, started in a process of its own."""
    source = Path(__file__).parent.parent / "src"
    environment = {**os.environ, "PYTHONPATH": str(source), "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    return subprocess.Popen(
        [sys.executable, "-m", "ssole", *arguments],
        cwd=cwd,
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
