"""Whole protocols on small images whose answer is known."""

from __future__ import annotations

import io
import json
import math
import re
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from ssole.data.arrays import ArraySource
from ssole.data.store import ImageStore
from ssole.errors import DataError
from ssole.evaluation import subject
from ssole.evaluation.protocols import embed, evaluate, knn_evaluator
from ssole.evaluation.results import Score

evaluate_quietly = partial(evaluate, progress=False, device="cpu", precision="float32")


class MeanColour(nn.Module):
    """Features that tell the classes below apart: the channel means."""

    image_size, mean, std = 8, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)

    def __init__(self, scale: float = 1.0) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(scale))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return images.mean((2, 3)) * self.scale


def coloured(n: int, *, seed: int, noise: int = 60, names: tuple[str, ...] | None = ("red", "green", "blue")) -> Any:
    """Noise with one channel raised, which is the class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % 3
    images = rng.integers(0, 256 - noise, size=(n, 8, 8, 3), dtype=np.uint8)
    images[np.arange(n), :, :, labels] += np.uint8(noise)
    return ArraySource(images, labels, classes=names, name=f"coloured-{seed}")


def test_a_good_model_is_right_and_a_bad_one_at_chance() -> None:
    train, test = coloured(240, seed=0), coloured(90, seed=1)
    good = evaluate_quietly(MeanColour(), train, test=test)
    assert good.test == "coloured-1, 90 images"
    assert good.train == "coloured-0, 240 images"
    assert list(good.rows) == ["trained", "raw pixels (8x8)"]
    assert list(good.rows["trained"]) == ["knn20", "knn10", "linear"]
    assert all(score.value == 1 and score.n == 90 and score.std == 0 for score in good.rows["trained"].values())
    assert good.probes["trained"][0]["converged"]
    collapsed = evaluate_quietly(MeanColour(scale=0.0), train, test=test, baselines=False)
    assert collapsed.rows["trained"]["knn20"].value == pytest.approx(1 / 3)
    assert "trained: all features are equal; the representation has collapsed." in collapsed.notes


def test_one_run_has_a_binomial_error_and_several_have_a_deviation() -> None:
    train, test = coloured(120, seed=0, noise=6), coloured(60, seed=1, noise=6)
    one = evaluate_quietly(MeanColour(), train, test=test, protocol=["knn"], baselines=False)
    score = one.rows["trained"]["knn10"]
    assert 0.3 < score.value < 1
    assert score.std == pytest.approx(math.sqrt(score.value * (1 - score.value) / 60))
    runs = [MeanColour(), MeanColour(0.0)]
    several = evaluate_quietly(runs, train, test=test, protocol=["knn"], baselines=False)
    both = several.rows["trained (2 runs)"]["knn10"]
    values = [score.value, 1 / 3]
    assert (both.value, both.std) == (pytest.approx(np.mean(values)), pytest.approx(np.std(values, ddof=1)))
    assert (both.runs, both.n) == (2, 60)


def test_without_test_images_a_stated_share_is_held_out() -> None:
    data = coloured(210, seed=0)
    first, again = (evaluate_quietly(MeanColour(), data, baselines=False, seed=4) for _ in range(2))
    assert "tested on 42 images held out of 210 by seed 4" in first.notes[0]
    assert first.rows["trained"]["linear"].n == 42
    assert first.to_dict() == again.to_dict()


def test_a_folder_without_splits_is_never_tested_on_itself(tmp_path: Path) -> None:
    source = coloured(60, seed=0)
    for i in range(60):
        folder = tmp_path / "test" / source.classes[source.labels[i]]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(source.read(i)).save(folder / f"{i}.png")
    for data in (tmp_path, tmp_path / "test"):  # a folder named test opens as either split
        result = evaluate_quietly(MeanColour(), str(data / "test" if data == tmp_path else data), baselines=False)
        assert "held out of 60" in result.notes[0]


def test_labels_are_matched_by_class_name() -> None:
    test = coloured(90, seed=1)
    renumbered = ArraySource(test.images, (test.labels + 1) % 3, classes=("blue", "red", "green"), name="renumbered")
    result = evaluate_quietly(MeanColour(), coloured(240, seed=0), test=renumbered, baselines=False)
    assert result.rows["trained"]["knn20"].value == 1


def test_other_classes_in_test_are_an_error_that_names_them() -> None:
    test = coloured(90, seed=1, names=("red", "green", "purple"))
    with pytest.raises(DataError, match=r"lack: 'purple'. Training has 'red', 'green', 'blue'"):
        evaluate_quietly(MeanColour(), coloured(120, seed=0), test=test)
    with pytest.raises(DataError, match="have no labels"):
        evaluate_quietly(MeanColour(), coloured(120, seed=0), test=ArraySource(test.images))


def test_one_class_or_too_few_images_are_errors() -> None:
    images = coloured(60, seed=0).images
    with pytest.raises(DataError, match="an accuracy needs at least two classes"):
        evaluate_quietly(MeanColour(), ArraySource(images, np.zeros(60, dtype=np.int64)))
    with pytest.raises(ValueError, match=r"k is \(20, 10\) and there are 12 training images"):
        evaluate_quietly(MeanColour(), coloured(15, seed=0))


def test_without_labels_it_says_so_and_gives_label_free_figures() -> None:
    data = coloured(100, seed=0)
    unlabelled = ArraySource(data.images, name="unlabelled")

    def views(images: torch.Tensor | list[torch.Tensor], indices: torch.Tensor) -> list[torch.Tensor]:
        assert isinstance(images, torch.Tensor)
        assert torch.equal(images, torch.from_numpy(data.images).permute(0, 3, 1, 2)[indices])
        return [torch.stack([images / 255, -(images / 255)], 1)]

    result = evaluate_quietly(MeanColour(), unlabelled, views=views)
    assert result.test is None
    assert "unlabelled has no labels" in result.notes[0]
    assert list(result.rows["trained"]) == ["effective_rank", "rankme", "uniformity", "alignment"]
    assert result.rows["trained"]["alignment"].value == pytest.approx(4)  # opposite features
    assert 1 < result.rows["trained"]["rankme"].value <= 3
    assert "alignment" not in result.rows["raw pixels (8x8)"]


def test_images_without_a_label_or_that_cannot_be_read_are_left_out() -> None:
    class Damaged(ArraySource):
        def read(self, i: int) -> Any:
            return b"not an image" if i == 7 else super().read(i)

    whole = coloured(240, seed=0)
    labels = np.where(np.arange(240) < 5, -1, whole.labels)
    result = evaluate_quietly(
        MeanColour(), Damaged(whole.images, labels, name="damaged"), test=coloured(90, seed=1), baselines=False
    )
    assert "5 of 240 images of damaged have no label: left out." in result.notes
    assert "1 images of damaged cannot be read: left out." in result.notes
    with pytest.warns(UserWarning, match="1 of 240 images cannot be read"):
        kept = embed(MeanColour(), Damaged(whole.images, labels), device="cpu", progress=False)
    assert kept.ids == [f"array:{i}" for i in range(240) if i != 7]
    assert kept.labels is not None
    assert kept.labels.tolist() == [label for i, label in enumerate(labels.tolist()) if i != 7]
    np.testing.assert_allclose(
        kept.array[7], (whole.images[8] / 255 - 0.5).mean((0, 1)) / 0.5, atol=0.02
    )  # the features of the next image, under its own id


def test_a_run_is_set_beside_itself_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "load_model", lambda run: MeanColour())
    monkeypatch.setattr("ssole.evaluation.protocols.load_model", lambda run: MeanColour())
    monkeypatch.setattr("ssole.evaluation.protocols.load_untrained", lambda run: MeanColour(0.0))
    result = evaluate_quietly("runs/some", coloured(120, seed=0), test=coloured(60, seed=1), protocol=["knn"])
    assert list(result.rows) == ["trained", "raw pixels (8x8)", "untrained"]
    assert result.rows["untrained"]["knn10"].value < 0.5 < result.rows["trained"]["knn10"].value


def test_a_module_is_fed_as_it_says_or_as_told() -> None:
    plain = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(ValueError, match="Sequential does not say how to feed it: pass image_size, mean, std"):
        evaluate_quietly(plain, coloured(120, seed=0))
    timm_like = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten())
    timm_like.pretrained_cfg = {"input_size": (3, 8, 8), "mean": (0.1, 0.2, 0.3), "std": (1.0, 1.0, 1.0)}  # type: ignore[assignment]
    assert subject.feeding(timm_like, None, None, None)["mean"] == (0.1, 0.2, 0.3)
    assert subject.feeding(timm_like, 16, None, [0.5] * 3) == {
        "image_size": 16,
        "mean": (0.1, 0.2, 0.3),
        "std": (0.5, 0.5, 0.5),
    }
    timm_like.pretrained_cfg = SimpleNamespace(input_size=(3, 8, 8), mean=(0,) * 3, std=(1,) * 3)  # type: ignore[assignment]
    assert subject.feeding(timm_like, None, None, None)["image_size"] == 8


@pytest.mark.parametrize("protocol", [["svm"], "svm", []])
def test_an_unknown_protocol_is_named(protocol: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"protocol is {protocol!r}; choose from")):
        evaluate_quietly(MeanColour(), coloured(60, seed=0), protocol=protocol)  # type: ignore[arg-type]


def test_a_single_protocol_needs_no_list() -> None:
    train, test = coloured(120, seed=0), coloured(60, seed=1)
    one, listed = (
        evaluate_quietly(MeanColour(), train, test=test, protocol=protocol, baselines=False)
        for protocol in ("knn", ["knn"])
    )
    assert one.rows == listed.rows


def test_results_are_shown_and_saved(tmp_path: Path) -> None:
    from rich.console import Console

    result = evaluate_quietly(
        MeanColour(), coloured(240, seed=0), test=coloured(90, seed=1), protocol=("knn", "linear", "label_free")
    )
    saved = json.loads(result.save(tmp_path / "result.json").read_text())
    assert saved["rows"]["trained"]["linear"] == {"value": 1.0, "std": 0.0, "n": 90, "runs": 1}
    assert saved["probes"]["trained"][0]["c"] > 0
    console = Console(width=200, record=True, file=io.StringIO())
    console.print(result.table())
    text = console.export_text()
    assert "100.0 % ± 0.0" in text
    assert "linear probe" in text
    assert "raw pixels (8x8)" in text
    assert Score.over_runs([Score.accuracy(0.5, 100)]).std == pytest.approx(0.05)


def test_the_online_evaluator_agrees_with_the_protocol() -> None:
    train, test = coloured(150, seed=0, noise=6), coloured(60, seed=1, noise=6)
    model = MeanColour()
    stores = [ImageStore(source, progress=False) for source in (train, test)]
    how: dict[str, Any] = {"image_size": 8, "mean": model.mean, "std": model.std, "precision": "float32"}
    online = knn_evaluator(*stores, k=(20, 10), **how)
    final = evaluate_quietly(model, train, test=test, protocol=["knn"], baselines=False).rows["trained"]
    assert online(model) == {"knn20": final["knn20"].value, "knn10": final["knn10"].value}
    assert model.training
    bounded = knn_evaluator(*stores, max_train=40, max_test=20, **how)
    assert bounded(model) == bounded(model)
    assert (bounded(model)["knn20"] * 20) % 1 == pytest.approx(0)
    with pytest.raises(ValueError, match="there are 5 training images"):
        knn_evaluator(*stores, max_train=5, **how)
    with pytest.raises(DataError, match="have no labels"):
        knn_evaluator(stores[0], ImageStore(ArraySource(test.images), progress=False), **how)


def test_a_folder_given_as_test_images_needs_no_special_name(tmp_path: Path) -> None:
    for place, images in (("photos", coloured(120, seed=0)), ("later", coloured(60, seed=1))):
        for i in range(len(images)):
            folder = tmp_path / place / f"class{int(images.labels[i])}"
            folder.mkdir(parents=True, exist_ok=True)
            Image.fromarray(np.asarray(images.read(i))).save(folder / f"{i}.png")
    result = evaluate_quietly(
        MeanColour(), str(tmp_path / "photos"), test=str(tmp_path / "later"), protocol=["knn"], baselines=False
    )
    assert result.rows["trained"]["knn20"].n == 60
    with pytest.raises(DataError, match="nowhere"):
        evaluate_quietly(MeanColour(), str(tmp_path / "photos"), test=str(tmp_path / "nowhere"))


def test_a_module_may_have_an_attribute_called_channels() -> None:
    """Only a backbone of ours says by it what its images are."""

    class Model(nn.Module):
        channels = 64

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mean(dim=(2, 3))

    images = np.random.default_rng(0).integers(0, 256, (6, 8, 8, 3), dtype=np.uint8)
    how = {"image_size": 8, "mean": (0.5,) * 3, "std": (0.5,) * 3}
    assert embed(Model(), images, **how).array.shape == (6, 3)
