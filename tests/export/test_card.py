"""Model card: evaluation, training, text from outside."""

from __future__ import annotations

from pathlib import Path

import pytest

import ssole
import tiny
from ssole.evaluation.results import EvaluationResult, Score
from ssole.training.run import Run


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
