"""Whole evaluations of small images whose result is known, and kNN while training."""

from __future__ import annotations

import contextlib
import math
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from coloured import MeanColour, coloured, evaluate_quietly
from PIL import Image
from torch import nn

import ssole
import tiny
from ssole.data.arrays import ArraySource
from ssole.data.sources import open_source
from ssole.data.store import ImageStore
from ssole.errors import DataError
from ssole.evaluation import evaluate as module
from ssole.evaluation import features, protocols
from ssole.evaluation.evaluate import embed, evaluate
from ssole.evaluation.features import extract
from ssole.evaluation.online import knn_evaluator
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.results import LABEL_FREE
from ssole.evaluation.scoring import Scoring

HALF = (0.5, 0.5, 0.5)


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
    assert good.protocols == {"knn": 2, "linear": 1}
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


def test_a_figure_that_only_some_runs_have_is_left_out_with_a_note() -> None:
    result = evaluate_quietly(
        [MeanColour(), MeanColour(0.0)], coloured(60, seed=0), protocol="label-free", baselines=False
    )
    row = result.rows["trained (2 runs)"]
    assert "alpha_req" not in row  # undefined where all features are equal
    assert row["rankme"].runs == 2
    assert "trained (2 runs): no alpha-ReQ, which some of the runs do not have." in result.notes


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
    assert set(result.rows["trained"]) == set(LABEL_FREE)
    assert result.rows["trained"]["alignment"].value == pytest.approx(4)  # opposite features
    assert 1 < result.rows["trained"]["rankme"].value <= 3
    assert "alignment" not in result.rows["raw pixels (8x8)"]


class Damaged(ArraySource):
    """Images of which one cannot be read."""

    def read(self, i: int) -> Any:
        return b"not an image" if i == 7 else super().read(i)


def test_only_images_that_can_be_read_count_for_robustness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "CORRUPTIONS", {"contrast": protocols.CORRUPTIONS["contrast"]})
    train, test = coloured(60, seed=0), coloured(30, seed=1)
    damaged = Damaged(test.images, test.labels, classes=test.classes)
    result = evaluate_quietly(MeanColour(), train, test=damaged, protocol="robustness", baselines=False)
    assert result.rows["trained"]["robustness"].n == 29


def test_one_bar_at_a_time_for_robustness(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "CORRUPTIONS", {"contrast": protocols.CORRUPTIONS["contrast"]})
    shown: list[str] = []

    @contextlib.contextmanager
    def bar(what: str, total: int, *, enabled: bool) -> Iterator[Any]:
        if enabled:
            assert not shown, f"{what} within {shown}"
            shown.append(what)
        yield lambda count=1: None
        if enabled:
            shown.remove(what)

    for place in (protocols, features):
        monkeypatch.setattr(place, "progress_bar", bar)
    train, test = coloured(60, seed=0), coloured(30, seed=1)
    evaluate(MeanColour(), train, test=test, protocol="robustness", device="cpu")


def test_images_without_a_label_or_that_cannot_be_read_are_left_out() -> None:
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
    seen: list[int] = []

    def views(images: torch.Tensor | list[torch.Tensor], indices: torch.Tensor) -> list[torch.Tensor]:
        assert isinstance(images, torch.Tensor)
        seen.extend(indices.tolist())
        return [torch.stack([images / 255] * 2, 1)]

    evaluate_quietly(MeanColour(), Damaged(whole.images), views=views, baselines=False)
    assert seen == [i for i in range(240) if i != 7]


def test_a_run_is_set_beside_itself_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_model", lambda run: MeanColour())
    monkeypatch.setattr(module, "untrained", lambda run: MeanColour(0.0))
    result = evaluate_quietly("runs/some", coloured(120, seed=0), test=coloured(60, seed=1), protocol=["knn"])
    assert list(result.rows) == ["trained", "raw pixels (8x8)", "untrained"]
    assert result.rows["untrained"]["knn10"].value < 0.5 < result.rows["trained"]["knn10"].value


def test_a_run_in_a_dict_keeps_its_own_preprocessing_also_untrained(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "open_model", lambda run: MeanColour())
    monkeypatch.setattr(module, "untrained", lambda run: MeanColour())
    given = {"mean": (0.4, 0.4, 0.4), "std": (1.0, 1.0, 1.0)}  # for other networks of the table
    result = evaluate_quietly({"mine": "runs/some"}, coloured(60, seed=0), protocol="label-free", **given)
    assert result.rows["untrained"] == result.rows["mine"]


@pytest.mark.parametrize("protocol", [["svm"], "svm", []])
def test_an_unknown_protocol_is_named(protocol: object) -> None:
    with pytest.raises(ValueError, match=re.escape(f"protocol is {protocol!r}; choose from knn, linear")):
        evaluate_quietly(MeanColour(), coloured(60, seed=0), protocol=protocol)  # type: ignore[arg-type]


def test_a_single_protocol_needs_no_list() -> None:
    train, test = coloured(120, seed=0), coloured(60, seed=1)
    one, listed = (
        evaluate_quietly(MeanColour(), train, test=test, protocol=protocol, baselines=False)
        for protocol in ("knn", ["knn"])
    )
    assert one.rows == listed.rows


def test_every_protocol_of_features_in_one_table() -> None:
    train, test = coloured(240, seed=0), coloured(90, seed=1)
    names = ["knn", "few_shot", "cluster", "retrieval", "label-free"]
    result = evaluate_quietly(MeanColour(), train, test=test, protocol=names)
    assert list(result.protocols) == ["knn", "few-shot", "cluster", "retrieval", "label-free"]
    row = result.rows["trained"]
    for name in ("few_shot1", "few_shot5", "few_shot10", "cluster_accuracy", "retrieval_map", "recall1"):
        assert row[name].value > 0.95, name
    assert row["few_shot10"].n == 90
    assert row["few_shot10"].interval is not None
    assert len(result.details["trained"]["few_shot1"][0]["episodes"]) == 20
    assert "few_shot1" in result.rows["raw pixels (8x8)"]


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


def test_protocols_that_train_or_corrupt() -> None:
    class Convolved(nn.Module):
        """As timm's models: a feature map, and its mean."""

        image_size, mean, std, num_features = 8, HALF, HALF, 16

        def __init__(self) -> None:
            super().__init__()
            torch.manual_seed(0)
            self.layer = nn.Conv2d(3, 16, 4, stride=4)

        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            features: torch.Tensor = self.layer(images)
            return features

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.forward_features(images).mean((2, 3))

    train, test = coloured(240, seed=0), coloured(60, seed=1)
    names = ["sgd", "attentive", "semi-supervised", "robustness"]
    result = evaluate_quietly(Convolved(), train, test=test, protocol=names)
    row, pixels = result.rows["trained"], result.rows["raw pixels (8x8)"]
    values = {name: row[name].value for name in ("sgd", "attentive", "semi10")}
    assert min(values.values()) > 0.9, values
    assert {"sgd", "robustness"} <= pixels.keys()
    assert not {"attentive", "semi1", "semi10"} & pixels.keys()
    details = result.details["trained"]
    assert [details[name][0]["images"] for name in ("semi1", "semi10")] == [3, 24]
    assert len(details["semi1"][0]["split"]) == 64
    found = details["robustness"][0]
    assert found["clean"] > 0.9
    assert len(found) == 16
    values = [value for name, one in found.items() if name != "clean" for value in one]
    assert row["robustness"].value == pytest.approx(sum(values) / 75)
    assert row["robustness_kept"].value == pytest.approx(row["robustness"].value / found["clean"])
    plain = evaluate_quietly(MeanColour(), train, test=test, protocol=["attentive", "knn"], baselines=False)
    assert (
        "trained: no attentive probe: MeanColour has no forward_features, which gives spatial features." in plain.notes
    )
    assert "attentive" not in plain.rows["trained"]


def test_models_of_different_images_are_no_row() -> None:
    models = [
        (MeanColour(), Preprocessing(image_size=8, mean=(0.5,) * count, std=(0.5,) * count, channels=channels))
        for count, channels in ((5, 5), (3, None))
    ]
    scoring = Scoring(lambda _: pytest.fail("no images are opened"), "knn", None, 0, torch.device("cpu"), "auto", False)
    with pytest.raises(ValueError, match="take different images: RGB, 5 channels; evaluate them separately"):
        scoring.add_models("trained", models)


def test_a_network_without_spatial_features_for_the_probe_stops_no_other() -> None:
    class Spatial(MeanColour):
        def forward_features(self, images: torch.Tensor) -> Any:
            return images * self.scale

    class Several(Spatial):
        def forward_features(self, images: torch.Tensor) -> Any:
            return [images, images]

    models = {"map": Spatial(), "list": Several(), "large": Spatial(1e6)}
    data = coloured(60, seed=0)
    result = evaluate_quietly(models, data, protocol=["attentive", "knn"], baselines=False)
    assert [name for name, row in result.rows.items() if "attentive" in row] == ["map"]
    assert all("knn20" in row for row in result.rows.values())
    for note in (
        "list: no attentive probe: forward_features of Several gives list; (B, F, h, w) is needed.",
        "large: no attentive probe: its spatial features go beyond 65,504, the largest number of float16.",
    ):
        assert note in result.notes
