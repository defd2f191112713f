"""`ssole eval`: the table, options, runs without labels, refused input."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from commands import Command
from safetensors.torch import save_file

import ssole
import tiny
from ssole.evaluation.label_free import label_free_figures
from ssole.evaluation.models import name_of
from ssole.evaluation.results import EvaluationResult


def test_eval_of_a_run_on_its_own_labeled_data(trained: Command) -> None:
    outcome = trained("eval", "run")
    assert outcome.code == 0, outcome.err
    for word in ("trained", "raw pixels", "untrained", "kNN k=20", "linear probe", "saved: run/evaluation.json"):
        assert word in outcome.out
    assert json.loads(Path("run/evaluation.json").read_text())


def test_eval_options(trained: Command) -> None:
    tiny.write_folder(Path("test"), 20)
    given = ["--data", "labeled", "--test", "test", "--protocol", "knn", "--save", "mine.json", "--device", "cpu"]
    outcome = trained("eval", "run/backbone.safetensors", *given)
    assert outcome.code == 0, outcome.err
    assert "linear probe" not in outcome.out
    assert Path("mine.json").is_file()


def test_protocols_are_named_with_commas_or_spaces(trained: Command) -> None:
    for words in (["few-shot,retrieval"], ["few-shot", "retrieval"], ["few-shot,", "retrieval"]):
        outcome = trained("eval", "run", "--data", "labeled", "--protocols", *words)
        assert outcome.code == 0, outcome.err
        assert "retrieval, mAP" in outcome.out
        assert "5-shot" in outcome.out
        assert "kNN" not in outcome.out


def test_the_verdict_knows_the_number_of_images(trained: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    # Two steps leave features that are nearly equal; those below vary in as many directions as there are images.
    features = torch.eye(2, 16)
    monkeypatch.setattr(
        "ssole.evaluation.protocols.label_free_figures", lambda _, views: label_free_figures(features, views)
    )
    tiny.write_folder(Path("few"), 2, classes=(".",))
    outcome = trained("eval", "run", "--data", "few")
    assert outcome.code == 0, outcome.err
    said = (
        "verdict on run: no verdict: the figures are of 2 images, and RankMe cannot exceed their number; give at least"
    )
    assert said in " ".join(outcome.out.split())


def test_eval_of_a_run_whose_images_are_gone(trained: Command) -> None:
    Path("labeled").rename("elsewhere")
    outcome = trained("eval", "run")
    assert outcome.code == 2
    assert f"the images of run are no longer there ({Path('labeled').absolute()}): pass --data" in outcome.err


def test_eval_without_labels_says_so(trained: Command) -> None:
    outcome = trained("eval", "run", "--data", "unlabeled")
    assert outcome.code == 0, outcome.err
    assert "no labels" in outcome.out
    for word in ("RankMe", "alignment", "uniformity"):
        assert word in outcome.out


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["eval"], "RUN"),
        (["eval", "nowhere"], "there is no nowhere"),
        (["eval", "photos"], "photos is not a run folder"),
        (["eval", "run/backbone.safetensors"], "does not say which images to use: pass --data"),
        (["eval", "run", "--data", "phots"], "'phots'"),
        (["eval", "run", "--protocols", "knn,svm"], "protocol is ['knn', 'svm']; choose from knn, linear, sgd"),
        (["eval", "run", "--device", "tpu"], "auto, cpu, cuda or cuda:N, got 'tpu'"),
        (["eval", "run", "--save", "nowhere/mine.json"], "there is no folder nowhere to write mine.json to"),
        (["eval", "run", "--save", "labeled"], "labeled is a folder: name a file to write"),
    ],
)
def test_wrong_input_to_eval(trained: Command, arguments: list[str], words: str) -> None:
    outcome = trained(*arguments)
    assert outcome.code == 2
    assert words in outcome.err


def test_a_run_on_images_in_memory_needs_data_to_be_evaluated(trained: Command) -> None:
    tiny.start(Path("array"), steps=1)
    outcome = trained("eval", "array")
    assert outcome.code == 2
    assert "array was trained on images in memory: pass --data" in outcome.err


def test_an_interrupted_run_cannot_be_evaluated_yet(trained: Command) -> None:
    Path("run/backbone.safetensors").unlink()
    outcome = trained("eval", "run")
    assert outcome.code == 2
    assert "run is not finished, so it has no backbone yet: resume it with ssole pretrain --resume run" in outcome.err


@pytest.mark.filterwarnings("default")
def test_a_run_that_cannot_be_written_is_evaluated(trained: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def read_only(*_: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("ssole.evaluation.results.write_text_atomically", read_only)
    outcome = trained("eval", "run", "--protocol", "knn")
    assert outcome.code == 0
    assert "warning: run/evaluation.json could not be written (Read-only file system): --save FILE" in outcome.err
    outcome = trained("eval", "run", "--protocol", "knn", "--save", "mine.json")
    assert outcome.code == 1
    assert "error: [Errno 30] Read-only file system" in outcome.err


def test_the_result_is_saved_before_it_is_printed(trained: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def unprintable(_: EvaluationResult) -> None:
        raise ValueError("nothing can be printed")

    monkeypatch.setattr(EvaluationResult, "table", unprintable)
    assert trained("eval", "run", "--protocol", "knn").code == 2
    assert EvaluationResult.load("run/evaluation.json").rows


@pytest.mark.filterwarnings("default")
def test_an_earlier_result_with_other_figures_is_kept(trained: Command) -> None:
    def kept(*arguments: str) -> str:
        outcome = trained("eval", "run", *arguments)
        assert outcome.code == 0, outcome.err
        return "".join(re.findall(r"^warning: the earlier result .* kept as (.*)$", outcome.err, flags=re.MULTILINE))

    assert kept("--protocol", "label-free") == ""
    assert kept("--protocol", "knn") == "run/evaluation-2.json"
    assert "rankme" in EvaluationResult.load("run/evaluation-2.json").rows["trained"]
    assert kept("--protocols", "knn,label-free") == ""  # which has those of the earlier
    tiny.write_folder(Path("test"), 20)
    assert kept("--protocols", "knn,label-free", "--test", "test") == "run/evaluation-3.json"


def test_several_networks_in_one_table(trained: Command, tmp_path: Path) -> None:
    ssole.export("run", to="timm", out=tmp_path / "timm")
    given = ["run", f"timm:local-dir:{tmp_path / 'timm'}", "--protocols", "knn,label-free", "--save", "all.json"]
    outcome = trained("eval", *given)
    assert outcome.code == 0, outcome.err
    rows = EvaluationResult.load("all.json").rows
    assert not Path("run/evaluation.json").exists()  # which is of one run
    mine, exported, pixels, untrained = rows
    assert (mine, pixels[:10], untrained) == ("run", "raw pixels", "untrained")
    assert rows[exported]["knn20"] == rows[mine]["knn20"]
    assert rows[exported]["alignment"].value == pytest.approx(rows[mine]["alignment"].value, rel=1e-4)
    assert name_of(given[1]) == exported


def test_a_network_of_others_needs_data(trained: Command) -> None:
    outcome = trained("eval", "timm:resnet18")
    assert outcome.code == 2
    assert "timm:resnet18 does not say which images to use: pass --data" in outcome.err


def test_transfer_to_several_data_sets(trained: Command) -> None:
    outcome = trained("eval", "run", "--transfer", "labeled", "nowhere")
    assert outcome.code == 0, outcome.err
    for words in ("labeled, linear", "untrained", "nowhere is left out", "saved: run/transfer.json"):
        assert words in outcome.out
    assert not Path("run/evaluation.json").exists()


def test_figures_of_another_preprocessing_are_not_the_run_s(trained: Command) -> None:
    outcome = trained("eval", "run", "--protocol", "knn", "--mean", "0", "0", "0", "--std", "1", "1", "1")
    assert outcome.code == 0
    assert "saved" not in outcome.err
    assert not Path("run/evaluation.json").exists()


def test_another_input_size_is_that_of_the_views_too(trained: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes = set()
    conv = timm.models.ResNet.forward

    def watched(self: timm.models.ResNet, images: torch.Tensor) -> Any:
        sizes.add(tuple(images.shape[-2:]))
        return conv(self, images)

    monkeypatch.setattr(timm.models.ResNet, "forward", watched)
    outcome = trained("eval", "run", "--protocols", "label-free", "--image-size", "16")
    assert outcome.code == 0, outcome.err
    assert sizes == {(16, 16)}


def test_a_size_that_a_network_does_not_take(trained: Command) -> None:
    save_file(timm.create_model("deit_tiny_patch16_224", num_classes=0).state_dict(), "vit.safetensors")
    given = ["timm:deit_tiny_patch16_224=vit.safetensors", "--data", "labeled", "--image-size", "64"]
    outcome = trained("eval", *given)
    assert outcome.code == 2
    assert "the network does not take images of 64 x 64 pixels: Input height (64)" in outcome.err
