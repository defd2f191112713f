"""Scoring of models and baselines: rows over several runs, notes once, and data opened once for all they suit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from coloured import PREPROCESSING, MeanColour, coloured, evaluate_quietly

from ssole.data.arrays import ArraySource
from ssole.evaluation.datasets import EvaluationData, open_data
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.scoring import Scoring


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
