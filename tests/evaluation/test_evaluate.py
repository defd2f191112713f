"""Whole evaluations of small images whose result is known; rows over several runs; and kNN while training."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coloured import PREPROCESSING, Damaged, MeanColour, coloured, evaluate_quietly
from PIL import Image

import ssole
import tiny
from ssole.data.arrays import ArraySource
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError
from ssole.evaluation import evaluate as module
from ssole.evaluation import models
from ssole.evaluation.datasets import EvaluationData, open_data
from ssole.evaluation.embed import embed
from ssole.evaluation.evaluate import Scoring
from ssole.evaluation.features import extract
from ssole.evaluation.online import knn_evaluator
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.results import LABEL_FREE
from ssole.search.search import build_index


def test_a_good_model_is_right_and_a_bad_one_at_chance() -> None:
    train, test = coloured(240, seed=0), coloured(90, seed=1)
    good = evaluate_quietly(MeanColour(), train, test=test)
    assert good.test == "coloured-1, 90 images"
    assert good.train == "coloured-0, 240 images"
    assert list(good.rows) == ["trained", "raw pixels (8x8)"]
    metrics = ["knn20", "knn10", "knn200", "linear"]
    assert list(good.rows["trained"]) == [name + part for name in metrics for part in ("", "_macro")]
    assert all(score.value == 1 and score.n == 90 and score.std == 0 for score in good.rows["trained"].values())
    details = good.details["trained"]["linear"][0]
    assert details["converged"]
    assert (details["per_class"], details["confusion"]) == ([1, 1, 1], [[30, 0, 0], [0, 30, 0], [0, 0, 30]])
    assert good.protocols == {"knn": 2, "linear": 2}
    collapsed = evaluate_quietly(MeanColour(scale=0.0), train, test=test, baselines=False)
    assert collapsed.rows["trained"]["knn20"].value == pytest.approx(1 / 3)
    assert "trained: all features are equal; the representation has collapsed." in collapsed.notes


def test_one_class_or_too_few_images_are_errors_or_notes() -> None:
    images = coloured(60, seed=0).images
    with pytest.raises(DataError, match="an accuracy needs at least two classes"):
        evaluate_quietly(MeanColour(), ArraySource(images, np.zeros(60, dtype=np.int64)))
    few = evaluate_quietly(MeanColour(), coloured(15, seed=0), protocol=["knn", "few-shot"])  # and for raw pixels
    assert [name for name in few.rows["trained"] if "macro" not in name] == ["knn10", "few_shot1"]
    for note in ("no kNN of k = 20: there are 12 training", "no 5-shot accuracy: the smallest class has 4"):
        assert sum(note in one for one in few.notes) == 1
    with pytest.raises(ValueError, match="there are 6 training images, and kNN needs at least 10"):
        evaluate_quietly(MeanColour(), coloured(9, seed=0), protocol="knn")


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
    assert result.notes[0].endswith(": only the protocol label-free, because all others need labels.")
    assert set(result.rows["trained"]) == set(LABEL_FREE)
    tested = evaluate_quietly(MeanColour(), unlabelled, test=data, baselines=False)
    assert tested.notes[0].endswith("need labels. The test images (coloured-0) are not used: there is nothing to test.")
    with pytest.raises(DataError, match="photoz"):
        evaluate_quietly(MeanColour(), unlabelled, test="photoz")
    assert result.rows["trained"]["alignment"].value == pytest.approx(4)  # opposite features
    assert 1 < result.rows["trained"]["rankme"].value <= 3
    assert "alignment" not in result.rows["raw pixels (8x8)"]


def test_images_without_a_label_or_that_cannot_be_read_are_left_out() -> None:
    whole = coloured(240, seed=0)
    labels = np.where(np.arange(240) < 5, -1, whole.labels)
    result = evaluate_quietly(
        MeanColour(), Damaged(whole.images, labels, name="damaged"), test=coloured(90, seed=1), baselines=False
    )
    assert "5 of 240 training images of damaged have no label: left out." in result.notes
    assert "1 training images of damaged cannot be read: left out." in result.notes
    with pytest.warns(UserWarning, match="1 of 240 images cannot be read"):
        kept = embed(MeanColour(), Damaged(whole.images, labels), device="cpu", progress=False)
    assert kept.ids == [f"array:{i}" for i in range(240) if i != 7]
    assert kept.labels is not None
    assert kept.labels.tolist() == [label for i, label in enumerate(labels.tolist()) if i != 7]
    np.testing.assert_allclose(
        kept.array[7], (whole.images[8] / 255 - 0.5).mean((0, 1)) / 0.5, atol=0.02
    )  # the features of the next image, under its own id
    seen: list[int] = []

    def views(images: torch.Tensor | list[torch.Tensor], indices: torch.Tensor) -> list[torch.Tensor]:
        assert isinstance(images, torch.Tensor)
        seen.extend(indices.tolist())
        return [torch.stack([images / 255] * 2, 1)]

    evaluate_quietly(MeanColour(), Damaged(whole.images), views=views, baselines=False)
    assert seen == [i for i in range(240) if i != 7]


def test_notes_on_train_and_test_images_of_one_name_are_apart() -> None:
    whole = coloured(60, seed=0)
    train, test = (
        Damaged(images, np.where(np.arange(60) < 5, -1, whole.labels), name="photos")
        for images in (whole.images, whole.images[:, ::-1].copy())
    )
    result = evaluate_quietly(MeanColour(), train, test=test, baselines=False)
    for kind in ("training", "test"):
        assert f"5 of 60 {kind} images of photos have no label: left out." in result.notes
        assert f"1 {kind} images of photos cannot be read: left out." in result.notes


def test_a_run_is_set_beside_itself_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "open_model", lambda run: MeanColour())
    monkeypatch.setattr(module, "untrained", lambda run: MeanColour(0.0))
    result = evaluate_quietly("runs/some", coloured(120, seed=0), test=coloured(60, seed=1), protocol=["knn"])
    assert list(result.rows) == ["trained", "raw pixels (8x8)", "untrained"]
    assert result.rows["untrained"]["knn10"].value < 0.5 < result.rows["trained"]["knn10"].value


def test_a_run_in_a_dict_keeps_its_own_preprocessing_also_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(models, "open_model", lambda run: MeanColour())
    monkeypatch.setattr(module, "untrained", lambda run: MeanColour())
    given = {"mean": (0.4, 0.4, 0.4), "std": (1.0, 1.0, 1.0)}  # for other networks of the table
    result = evaluate_quietly({"mine": "runs/some"}, coloured(60, seed=0), protocol="label-free", **given)
    assert result.rows["untrained"] == result.rows["mine"]


def test_the_online_evaluator_agrees_with_the_evaluation() -> None:
    train, test = coloured(150, seed=0, noise=6), coloured(60, seed=1, noise=6)
    model = MeanColour()
    preprocessing = Preprocessing.from_model(model)
    stores = [ImageStore(source, progress=False) for source in (train, test)]
    online = knn_evaluator(*stores, preprocessing, precision="float32")
    final = evaluate_quietly(model, train, test=test, protocol=["knn"], baselines=False).rows["trained"]
    assert online(model) == {"knn20": final["knn20"].value}
    assert model.training
    with pytest.raises(ValueError, match="k is 20 and there are 19 training images"):
        knn_evaluator(ImageStore(coloured(19, seed=0), progress=False), stores[1], preprocessing)
    with pytest.raises(DataError, match="have no labels"):
        knn_evaluator(stores[0], ImageStore(ArraySource(test.images), progress=False), preprocessing)


def photographs(root: Path, n: int = 24) -> str:
    """JPEGs with a shorter side of 900 pixels, whose classes show a little in their grain."""
    rng = np.random.default_rng(0)
    for split in ("train", "test"):
        for i in range(n):
            grain = rng.integers(0, 200 + 6 * (i % 2), (900, 900 + 40 * (i % 3), 3), dtype=np.uint8)
            path = root / split / "ab"[i % 2] / f"{i}.jpg"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(grain).save(path, quality=80)
    return str(root)


@pytest.mark.slow
def test_knn_of_photographs_while_training_is_that_of_the_evaluation(tmp_path: Path) -> None:
    """Training decodes photographs at another size, for its views."""
    data = photographs(tmp_path / "photos")
    run = tiny.start(tmp_path / "run", data=data, steps=2, knn_every=2, augment={"crops": [{"count": 2, "size": 32}]})
    final = evaluate_quietly(run, data, protocol="knn", baselines=False).rows["trained"]
    assert [row["knn20"] for row in run.metrics if "knn20" in row] == [final["knn20"].value]

    model, size = ssole.load(run), run.config.augment.useful_size
    preprocessing = Preprocessing.from_model(model)
    of_training, of_evaluation = (
        [ImageStore(open_source(data, split=split), shrink_to=shrink_to, progress=False) for split in ("train", "test")]
        for shrink_to in (size, preprocessing.decode_size)
    )
    online = knn_evaluator(*of_evaluation, preprocessing, precision="float32")
    assert online(model) == {"knn20": final["knn20"].value}
    with pytest.raises(ValueError, match=f"decoded at size {size} with channels None, and the model needs size 64"):
        knn_evaluator(of_evaluation[0], of_training[1], preprocessing)
    features = [extract(model, stores[0], preprocessing, progress=False) for stores in (of_training, of_evaluation)]
    assert not torch.allclose(*features, rtol=1e-2)


def test_a_model_of_the_name_of_a_baseline_keeps_its_row() -> None:
    train, test = coloured(60, seed=0), coloured(30, seed=1)
    models = {"raw pixels (8x8)": MeanColour(scale=0.0), "untrained": MeanColour()}
    found = evaluate_quietly(models, train, test=test, protocol="knn")
    assert list(found.rows) == ["raw pixels (8x8)", "untrained", "raw pixels (8x8) (baseline)"]
    assert found.rows["raw pixels (8x8)"]["knn20"].value == pytest.approx(1 / 3)


@pytest.mark.filterwarnings("ignore:3 of 60 images cannot be read")
def test_images_are_as_unreadable_as_the_run_allows(tmp_path: Path) -> None:
    data = tiny.write_folder(tmp_path / "images", 60)
    for name in ("cat/000", "cat/002", "dog/001"):
        (data / f"{name}.png").write_bytes(b"damaged")
    run = tiny.start(tmp_path / "run", data=str(data), steps=1, max_unreadable=0.1)
    with pytest.warns(UserWarning, match="3 of 60 images cannot be read"):
        assert len(ssole.embed(run, data, progress=False).array) == 57
    build_index(run, data, tmp_path / "index", progress=False)
    assert evaluate_quietly(run, data).rows["trained"]["knn20"].n > 8
    loaded = ssole.load(run)
    assert len(ssole.embed(loaded, data, progress=False).array) == 57
    assert next(iter(evaluate_quietly(loaded, data).rows.values()))["knn20"].n > 8
    strict = tiny.start(tmp_path / "strict", steps=1)
    with pytest.raises(DataError, match="cannot be read"):
        ssole.embed(strict, data, progress=False)


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


def test_a_figure_that_only_some_runs_have_is_left_out_with_a_note() -> None:
    result = evaluate_quietly(
        [MeanColour(), MeanColour(0.0)], coloured(60, seed=0), protocol="label-free", baselines=False
    )
    row = result.rows["trained (2 runs)"]
    assert "alpha_req" not in row  # undefined where all features are equal
    assert row["rankme"].runs == 2
    assert "trained (2 runs): no alpha-ReQ, which some of the runs do not have." in result.notes


def test_models_of_different_size_each_see_images_decoded_for_them() -> None:
    """A model's scores are the same beside any other model."""

    class Larger(MeanColour):
        image_size = 16

    rng = np.random.default_rng(0)
    train, test = (
        ArraySource(rng.integers(0, 256, (n, 80, 80, 3), dtype=np.uint8), np.arange(n) % 3, name=str(n))
        for n in (60, 30)
    )
    alone = [
        evaluate_quietly(model, train, test=test, protocol="label_free", baselines=False).rows["trained"]
        for model in (MeanColour(), Larger())
    ]
    assert alone[0] != alone[1]
    together = evaluate_quietly([MeanColour(), Larger()], train, test=test, protocol="label_free", baselines=False)
    for name, score in together.rows["trained (2 runs)"].items():
        assert score.value == pytest.approx((alone[0][name].value + alone[1][name].value) / 2, rel=1e-12)


def test_models_of_different_images_are_no_row() -> None:
    models = [
        (MeanColour(), Preprocessing(image_size=8, mean=(0.5,) * count, std=(0.5,) * count, channels=channels))
        for count, channels in ((5, 5), (3, None))
    ]
    scoring = Scoring(lambda _: pytest.fail("no images are opened"), "knn", None, 0, torch.device("cpu"), "auto", False)
    with pytest.raises(ValueError, match="take different images: RGB, 5 channels; evaluate them separately"):
        scoring.add_models("trained", models)


class Opened:
    """Scoring of a protocol, and the preprocessings that its data were opened for."""

    def __init__(self, train: Any, test: Any, protocol: Any) -> None:
        self.sources, self.preprocessings = (train, test), list[Preprocessing]()
        self.scoring = Scoring(self.open, protocol, None, 0, torch.device("cpu"), "float32", False)

    def open(self, preprocessing: Preprocessing) -> EvaluationData:
        self.preprocessings.append(preprocessing)
        return open_data(*self.sources, preprocessing, seed=0, progress=False)


def larger(n: int, seed: int) -> ArraySource:
    """Images that a model of 8 pixels sees reduced."""
    images = coloured(n, seed=seed)
    return ArraySource(images.images.repeat(5, 1).repeat(5, 2), images.labels, classes=images.classes, name="larger")


def test_data_are_opened_once_for_all_models_that_they_suit() -> None:
    second = Preprocessing(image_size=16, mean=PREPROCESSING.mean, std=PREPROCESSING.std)
    other_mean = Preprocessing(image_size=8, mean=(0.1,) * 3, std=(1.0,) * 3)  # the pixels are the same
    opened = Opened(larger(60, 0), larger(30, 1), "knn")
    for number, preprocessing in enumerate((PREPROCESSING, second, PREPROCESSING, other_mean, second)):
        opened.scoring.add_models(f"row {number}", [(MeanColour(), preprocessing)])
    assert opened.preprocessings == [PREPROCESSING, second]
    small = Opened(coloured(60, seed=0), coloured(30, seed=1), "knn")  # which neither of them reduces
    for preprocessing in (PREPROCESSING, second):
        small.scoring.add_models(str(preprocessing.image_size), [(None, preprocessing)])
    assert small.preprocessings == [PREPROCESSING]


def test_a_result_has_the_rows_in_order_and_each_note_once() -> None:
    test = coloured(30, seed=1)
    opened = Opened(coloured(60, seed=0), ArraySource(test.images, test.labels % 2, classes=test.classes), ["knn"])
    for row in ("b", "a"):
        opened.scoring.add_models(row, [(MeanColour(0.0), PREPROCESSING)])
        opened.scoring.notes.append("said twice")
    result = opened.scoring.result()
    assert list(result.rows) == list(result.details) == ["b", "a"]
    assert (result.train, result.test, result.classes) == ("coloured-0, 60 images", "array, 30 images", 3)
    assert result.protocols == {"knn": 2}
    assert result.notes == [
        "No test image is of 'blue'.",
        "b: all features are equal; the representation has collapsed.",
        "no kNN of k = 200: there are 60 training images.",
        "said twice",
        "a: all features are equal; the representation has collapsed.",
    ]


def test_without_a_model_the_features_are_the_pixels() -> None:
    train, test = coloured(60, seed=0), coloured(30, seed=1)
    opened = Opened(train, test, "knn")
    opened.scoring.add_models("raw", [(None, PREPROCESSING)])
    row = opened.scoring.result().rows["raw"]
    flat, other = (torch.from_numpy(one.images).flatten(1).double() / 255 - 0.5 for one in (train, test))
    cosines = torch.nn.functional.normalize(other, dim=1) @ torch.nn.functional.normalize(flat, dim=1).T
    votes = torch.zeros(30, 3, dtype=torch.float64)
    for image, nearest in enumerate(cosines.topk(10)[1]):
        for one in nearest:
            votes[image, train.labels[one]] += (cosines[image, one] / 0.07).exp()
    expected = (votes.argmax(1) == torch.from_numpy(test.labels)).double().mean()
    assert row["knn10"].value == pytest.approx(float(expected))


@pytest.mark.parametrize("protocol", ["svm", []])
def test_a_wrong_protocol_is_refused_before_anything_is_opened(protocol: Any) -> None:
    with pytest.raises(ValueError, match="choose from knn, linear"):
        Opened(None, None, protocol)


def test_without_labels_only_label_free_figures_are_measured() -> None:
    opened = Opened(ArraySource(coloured(60, seed=0).images), None, ["knn", "linear"])
    opened.scoring.add_models("mine", [(MeanColour(), PREPROCESSING)])
    result = opened.scoring.result()
    assert list(result.protocols) == ["label-free"]
    assert (result.test, result.classes) == (None, None)
    assert "rankme" in result.rows["mine"]
    assert "knn10" not in result.rows["mine"]
