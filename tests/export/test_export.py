"""`ssole.export`: every format read back by the code of its card, the comparison, and refused input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file
from torch import nn
from weight_files import Weights

import ssole
import tiny
from disk import small_files
from ssole.config import ConfigError
from ssole.evaluation.results import EvaluationResult, Score
from ssole.export import export as module
from ssole.export.formats import FORMATS, NormalisedBackbone, Written
from ssole.training.run import Run

STOCK: dict[str, Any] = {"model.stem": "timm", "augment.crops.0.size": 40}
SMALL: dict[str, Any] = {"model.stem": "4x4"}
PLAIN_ARGUMENTS = {"model.backbone_args": {}}  # torchvision takes no widths


def run_card(folder: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Names that the code of a card defines."""
    code = re.search(r"```python\n(.*?)```", (folder / "README.md").read_text(encoding="utf-8"), flags=re.DOTALL)
    assert code is not None
    monkeypatch.chdir(folder)
    names: dict[str, Any] = {}
    exec(code[1], names)  # noqa: S102 - our own text
    return names


@pytest.mark.parametrize("kind", [STOCK, SMALL], ids=["stock", "small stem"])
@pytest.mark.parametrize("to", FORMATS)
def test_the_code_of_the_card_gives_the_features_of_the_source(
    to: Any, kind: dict[str, Any], weights: Weights, monkeypatch: pytest.MonkeyPatch
) -> None:
    if to == "hf":
        pytest.importorskip("transformers", reason="transformers is not installed")
    if to == "onnx":
        pytest.importorskip("onnxscript", reason="the extra export is not installed")
    source = weights(**kind, **(PLAIN_ARGUMENTS if to == "torchvision" else {}))
    folder = ssole.export(source, to=to)
    assert folder == source.parent / "export" / to
    model = ssole.load(source)
    names = run_card(folder, monkeypatch)
    for count in (1, 5):
        images = torch.rand(count, 3, model.image_size, model.image_size)
        normal = (images - torch.tensor(model.mean).view(3, 1, 1)) / torch.tensor(model.std).view(3, 1, 1)
        expected = model(normal)
        if to == "onnx":
            found = torch.from_numpy(names["session"].run(None, {"images": images.numpy()})[0])
        elif to == "torch-export":
            found = names["model"](images)
        elif to == "hf":
            found = names["model"](normal).pooler_output
        else:
            found = names["model"](normal)
        assert found.shape == (count, model.num_features)
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-5 * max(1.0, expected.abs().max().item()))


@pytest.mark.parametrize("to", ["timm", "torch-export"])
def test_images_of_four_channels(to: Any, weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    four = {"channels": 4, "augment.mean": (0.5,) * 4, "augment.std": (0.3,) * 4}
    source = weights(**STOCK, **four, **{"augment.saturation": 0, "augment.hue": 0, "augment.grey": 0})
    names = run_card(ssole.export(source, to=to), monkeypatch)
    images = torch.rand(2, 4, 40, 40)
    given = images if to == "torch-export" else (images - 0.5) / 0.3
    torch.testing.assert_close(names["model"](given), ssole.load(source)((images - 0.5) / 0.3), rtol=0, atol=1e-5)


def test_an_export_that_differs_leaves_no_folder(weights: Weights, monkeypatch: pytest.MonkeyPatch) -> None:
    def write_wrong(model: Any, folder: Path) -> Written:
        wrong = NormalisedBackbone(model.backbone, model.mean, [2 * value for value in model.std])
        return Written(features=wrong.eval(), snippet="", needs="")

    monkeypatch.setitem(FORMATS, "timm", write_wrong)
    source = weights()
    with pytest.raises(ConfigError, match=r"differs from its source by .*, more than 1e-05, so it was not kept"):
        ssole.export(source, to="timm")
    assert list((source.parent / "export").iterdir()) == []


class Constant(nn.Module):
    """Model that gives every image the same features."""

    image_size, mean, std = 2, (0.0,), (1.0,)

    def __init__(self, *features: float) -> None:
        super().__init__()
        self.features = torch.tensor(features)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.features.expand(len(images), -1)


@pytest.mark.parametrize("bad", [1, 3])  # images of the batch that gives NaN
def test_a_result_that_is_not_finite_does_not_pass(bad: int) -> None:
    nan = Written(
        features=lambda images: torch.full((len(images), 1), np.nan if len(images) == bad else 1), snippet="", needs=""
    )
    assert not module._compare(Constant(1.0), nan) <= module.TOLERANCE  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("expected", "found", "difference"), [((100.0,), (99.0,), 0.01), ((0.1, 0.2), (0.1, 0.3), 0.1)]
)
def test_difference_is_relative_above_one(
    expected: tuple[float, ...], found: tuple[float, ...], difference: float
) -> None:
    written = Written(features=Constant(*found), snippet="", needs="")
    assert module._compare(Constant(*expected), written) == pytest.approx(difference)  # type: ignore[arg-type]


@pytest.mark.parametrize("to", FORMATS)
def test_a_full_disk_is_an_error_that_names_the_export(to: Any, weights: Weights) -> None:
    if to == "onnx":
        pytest.importorskip("onnxscript", reason="the extra export is not installed")
    source = weights(**(PLAIN_ARGUMENTS if to == "torchvision" else {}))
    ssole.load(source)  # which may write caches
    with small_files(), pytest.raises(OSError, match=rf"File too large: '.*export/.*{to}"):
        ssole.export(source, to=to)
    assert not (source.parent / "export" / to).exists()


def test_weights_that_are_not_finite_are_told_as_such(weights: Weights) -> None:
    source = weights()
    with safe_open(source, framework="pt") as file:
        header, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors | {"conv1.weight": tensors["conv1.weight"] * np.nan}, source, metadata=header)
    with pytest.raises(ValueError, match=r"features of random images hold NaN .* weights have diverged"):
        ssole.export(source, to="timm")
    assert list((source.parent / "export").iterdir()) == []


def test_a_run_its_folder_and_another_place(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", steps=1)
    assert ssole.export(run, to="timm") == tmp_path / "run" / "export" / "timm"
    assert ssole.export(run.path, to="timm", out=tmp_path / "new" / "there") == tmp_path / "new" / "there"
    (tmp_path / "empty").mkdir()
    ssole.export(run.path, to="timm", out=tmp_path / "empty")
    assert json.loads((tmp_path / "empty" / "config.json").read_text())["architecture"]


def test_refused_input(tmp_path: Path, weights: Weights) -> None:
    source = weights()
    with pytest.raises(ConfigError, match=r"no format 'onx'. Did you mean 'onnx'\?"):
        ssole.export(source, to="onx")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match=r"Choose from timm, torchvision"):
        ssole.export(source, to="keras")  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="is not an empty folder, and nothing is overwritten"):
        ssole.export(source, to="timm", out=tmp_path)
    with pytest.raises(ConfigError, match="there is no"):
        ssole.export(tmp_path / "nowhere", to="timm")


@pytest.fixture
def run(tmp_path: Path) -> Run:
    return tiny.start(tmp_path / "run", data=str(tiny.write_folder(tmp_path / "private" / "photos`<b>")), steps=2)


def card(run: Run, out: str) -> str:
    return (ssole.export(run, to="timm", out=run.path / out) / "README.md").read_text(encoding="utf-8")


def test_evaluation_stands_in_the_card_once_there_is_one(run: Run) -> None:
    assert "Not measured: `ssole eval` measures it" in card(run, "before")
    rows = {name: {"knn20": Score(value=0.5, std=0.01, n=99)} for name in ("trained", "untrained")}
    EvaluationResult(rows=rows, train="a, 5 images", test="b|<i>, 99 images", notes=["x_y"]).save(
        run.path / "evaluation.json"
    )
    text = card(run, "after")
    assert "|  | kNN k=20 |\n| --- | --- |\n| trained | 50.0 % ± 1.0 |\n| untrained | 50.0 % ± 1.0 |" in text
    assert "test: b\\|\\<i\\>, 99 images" in text
    assert "- x\\_y" in text


def test_a_damaged_evaluation_is_named(run: Run) -> None:
    (run.path / "evaluation.json").write_text("{}")
    with pytest.raises(ValueError, match=r"evaluation\.json is not a result of ssole eval .*: run ssole eval again"):
        card(run, "out")


def test_training_and_its_data_without_their_path(run: Run) -> None:
    text = card(run, "out")
    assert "| images | `photos'<b>` |" in text
    assert "private" not in text
    assert "| steps | 2 of 4 images |" in text
    assert "images | `photos" in text


def test_a_weight_file_alone_has_neither(run: Run, tmp_path: Path) -> None:
    alone = tmp_path / "alone.safetensors"
    alone.write_bytes(run.backbone_path.read_bytes())
    text = (ssole.export(alone, to="timm") / "README.md").read_text(encoding="utf-8")
    assert "## Training" not in text


def test_a_run_that_learned_from_labels_is_not_called_self_supervised(tmp_path: Path) -> None:
    run = tiny.start(tmp_path / "run", data=str(tiny.write_folder(tmp_path / "photos")), loss__name="supervised")
    card = (ssole.export(run, to="timm", out=tmp_path / "out") / "README.md").read_text()
    assert "trained with labels" in card
    assert "- self-supervised" not in card


def test_a_run_that_began_from_other_weights_is_not_said_to_lack_labels(run: Run, tmp_path: Path) -> None:
    second = tiny.start(tmp_path / "second", steps=1, init=str(run.path))
    text = card(second, "out")
    assert "without labels" not in text
    assert "- self-supervised" not in text
    assert f"| began from | `{run.path.name}` |" in text
