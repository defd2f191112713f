"""The run folder: config, metrics and checkpoints, each written whole or not at all.

NAME/  config.yaml · environment.json · metrics.jsonl · checkpoints/step-00000100.{safetensors,json} · backbone.safetensors
"""

from __future__ import annotations

import json
import platform
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ssole.config import ConfigError, PretrainConfig, from_dict, to_dict
from ssole.files import write_atomically, write_text_atomically

_KEEP = 2  # the newest checkpoint, and one more in case a disk lost part of it


@dataclass(frozen=True)
class Run:
    """A pretraining run on disk."""

    path: Path

    @property
    def config(self) -> PretrainConfig:
        """The settings the run was started with."""
        import yaml

        file = self.path / "config.yaml"
        if not file.is_file():
            raise ConfigError(f"{self.path} is not a run folder: it has no config.yaml")
        return from_dict(yaml.safe_load(file.read_text(encoding="utf-8")))

    @property
    def backbone_path(self) -> Path:
        """The final weights, loadable with timm."""
        return self.path / "backbone.safetensors"

    @property
    def finished(self) -> bool:
        """Whether training ran to its end."""
        return self.backbone_path.is_file()

    @property
    def metrics(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        file = self.path / "metrics.jsonl"
        if not file.is_file():
            return []
        return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


@dataclass(frozen=True)
class Progress:
    """How far a run has come, as stored beside each checkpoint."""

    step: int
    """Steps done."""
    images: int
    """Images in the data set; another number on resuming means that it is another data set."""
    seconds: float
    """Training time so far, over all sittings."""


def create_run(path: Path, config: PretrainConfig) -> Run:
    """Make the folder of a new run.

    Raises:
        ConfigError: the folder already holds a run.
    """
    import yaml

    if (path / "config.yaml").exists():
        raise ConfigError(
            f"{path} already holds a run: go on with it (--resume {path}), or choose another folder (--out)"
        )
    (path / "checkpoints").mkdir(parents=True, exist_ok=True)
    write_text_atomically(path / "environment.json", json.dumps(environment(), indent=2) + "\n")
    # last, because a folder with a config is a run
    write_text_atomically(path / "config.yaml", yaml.safe_dump(to_dict(config), sort_keys=False))
    return Run(path)


def environment() -> dict[str, Any]:
    """Versions and hardware, for the record."""
    import timm

    from ssole import __version__

    return {
        "ssole": __version__,
        "python": platform.python_version(),
        "torch": torch.__version__,
        "timm": timm.__version__,
        "platform": platform.platform(),
        "processor": _processor(),
        "threads": torch.get_num_threads(),
        "cuda": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "command": sys.argv,
    }


def _processor() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        for line in cpuinfo.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def save_checkpoint(run: Run, encoder: nn.Module, optimizer: torch.optim.Optimizer, progress: Progress) -> None:
    """Write weights and optimizer state, then the JSON whose presence says that they are whole; drop older ones."""
    from safetensors.torch import save_file

    tensors = {f"encoder.{name}": tensor for name, tensor in encoder.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for name, value in state.items():
            if value is not None:  # SGD's momentum buffer before its first step
                tensors[f"optimizer.{index}.{name}"] = torch.as_tensor(value)
    # channels_last tensors are stored as plain ones; loading copies them back into place
    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    stem = _stem(run, progress.step)
    write_atomically(stem.with_suffix(".safetensors"), lambda path: save_file(tensors, path))
    write_text_atomically(stem.with_suffix(".json"), json.dumps(vars(progress)) + "\n")
    for step in checkpoint_steps(run)[:-_KEEP]:
        _stem(run, step).with_suffix(".json").unlink()
        _stem(run, step).with_suffix(".safetensors").unlink()


def checkpoint_steps(run: Run) -> list[int]:
    """Steps of the run's whole checkpoints, oldest first."""
    return sorted(int(path.stem.removeprefix("step-")) for path in (run.path / "checkpoints").glob("step-*.json"))


def load_checkpoint(run: Run, encoder: nn.Module, optimizer: torch.optim.Optimizer) -> Progress | None:
    """Restore the newest checkpoint into encoder and optimizer; None when the run has none yet."""
    from safetensors.torch import load_file

    steps = checkpoint_steps(run)
    if not steps:
        return None
    stem = _stem(run, steps[-1])
    tensors = load_file(stem.with_suffix(".safetensors"))
    encoder.load_state_dict(
        {name.removeprefix("encoder."): t for name, t in tensors.items() if name.startswith("encoder.")}
    )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".", 2)
            state.setdefault(int(index), {})[key] = tensor
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
    return Progress(**json.loads(stem.with_suffix(".json").read_text(encoding="utf-8")))


def save_backbone(run: Run, backbone: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write the final weights under timm's names. The metadata tell how to build and feed the network."""
    from safetensors.torch import save_file

    tensors = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in backbone.state_dict().items()}
    write_atomically(run.backbone_path, lambda path: save_file(tensors, path, metadata=dict(metadata)))


def rewind_metrics(run: Run, step: int) -> None:
    """Drop the lines that were written after a checkpoint at `step`, which a resumed run will write again."""
    lines = [json.dumps(line) + "\n" for line in _whole_lines(run) if line["step"] <= step]
    write_text_atomically(run.path / "metrics.jsonl", "".join(lines))


def _whole_lines(run: Run) -> list[dict[str, Any]]:
    file = run.path / "metrics.jsonl"
    if not file.is_file():
        return []
    text = file.read_text(encoding="utf-8")
    # a kill may have cut the last line short: only what ends in a newline is whole
    return [json.loads(line) for line in text[: text.rfind("\n") + 1].splitlines()]


def _stem(run: Run, step: int) -> Path:
    return run.path / "checkpoints" / f"step-{step:08d}"
