"""Protocols by name, and what each of them gives for images whose result is known."""

from __future__ import annotations

import contextlib
import dataclasses
import re
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from coloured import Damaged, MeanColour, case_of, coloured, evaluate_quietly
from torch import nn

from ssole.evaluation import features, protocols
from ssole.evaluation.attentive import Tokens
from ssole.evaluation.evaluate import evaluate
from ssole.evaluation.preprocessing import Preprocessing
from ssole.evaluation.protocols import PROTOCOLS, chosen_protocols

HALF = (0.5, 0.5, 0.5)


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


# One protocol at a time


def right_but_for(wrong: int) -> Any:
    """Function from images to features: the class of each, in so many test images that of another."""

    def features_of(images: Any, **_: object) -> torch.Tensor:
        channels = torch.stack([images.get(torch.tensor([i]))[0].float().mean((1, 2)) for i in range(len(images))])
        classes = channels.argmax(1)
        if len(images) == 30:  # those for testing
            classes[:wrong] = (classes[:wrong] + 1) % 3
        return torch.eye(3)[classes]

    return features_of


@pytest.mark.parametrize("wrong", [0, 6, 30])
def test_classifiers_are_right_where_the_features_are(wrong: int) -> None:
    case = case_of(right_but_for(wrong), coloured(60, seed=0), coloured(30, seed=1))
    for name, metric in (("knn", "knn10"), ("linear", "linear"), ("sgd", "sgd")):
        outcome = PROTOCOLS[name].measure(case)
        assert outcome.scores[metric].value == pytest.approx(1 - wrong / 30), name
        assert outcome.scores[metric].n == 30
    few = PROTOCOLS["few-shot"].measure(case)
    assert few.details["few_shot5"] == {"episodes": [pytest.approx(1 - wrong / 30)] * 20}
    assert (few.scores["few_shot5"].std, few.scores["few_shot5"].interval) == (0, 0)


def test_the_linear_protocol_tells_its_penalty_and_sgd_its_rate() -> None:
    case = case_of(right_but_for(3), coloured(60, seed=0), coloured(30, seed=1))
    linear, sgd = (PROTOCOLS[name].measure(case).details[name] for name in ("linear", "sgd"))
    assert linear["c"] == case.probe.c
    assert linear["validation"] == case.probe.validation
    assert {"converged", "iterations", "per_class", "confusion"} <= linear.keys()
    assert sgd["rate"] in sgd["validation"]
    ends = min(sgd["validation"]), max(sgd["validation"])
    assert any("the SGD probe chose the rate" in note for note in case.notes) is (sgd["rate"] in ends)


def test_what_needs_a_network_gives_nothing_of_raw_pixels() -> None:
    case = case_of(right_but_for(0), coloured(60, seed=0), coloured(30, seed=1))
    for name in ("attentive", "semi-supervised"):
        assert PROTOCOLS[name].measure(case).scores == {}
    assert case.notes == []


def test_nothing_is_kept_of_an_accuracy_of_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "CORRUPTIONS", {"contrast": protocols.CORRUPTIONS["contrast"]})
    found = {}
    for wrong in (15, 30):
        case = case_of(right_but_for(wrong), coloured(60, seed=0), coloured(30, seed=1))
        found[wrong] = PROTOCOLS["robustness"].measure(case)
    assert found[30].details["robustness"]["clean"] == 0
    assert found[30].scores.keys() == {"robustness"}
    half = found[15].details["robustness"]
    assert (half["clean"], len(half["contrast"])) == (0.5, 5)
    mean = sum(half["contrast"]) / 5
    assert found[15].scores["robustness"].value == pytest.approx(mean)
    assert found[15].scores["robustness_kept"].value == pytest.approx(mean / 0.5)


def test_corruptions_of_pictures_are_not_for_five_channels(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(protocols, "CORRUPTIONS", {name: protocols.CORRUPTIONS[name] for name in ("snow", "contrast")})
    five = Preprocessing(image_size=8, mean=(0.5,), std=(0.5,), channels=5)
    case = dataclasses.replace(
        case_of(right_but_for(0), coloured(60, seed=0), coloured(30, seed=1)), preprocessing=five
    )
    assert PROTOCOLS["robustness"].measure(case).details["robustness"].keys() == {"clean", "contrast"}


def test_the_attentive_probe_sees_as_many_images_as_memory_allows(monkeypatch: pytest.MonkeyPatch) -> None:
    class Spatial(MeanColour):
        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            return images * self.scale

    monkeypatch.setattr(protocols, "TOKEN_BYTES", 20 * 2 * 3 * 7 * 7)  # float16 of 20 images, at the grid of the probe
    model = Spatial()
    case = case_of(right_but_for(0), coloured(60, seed=0), coloured(20, seed=1), model=model)
    rows, labels = protocols._tokens(case, Tokens(model), case.data.train)
    assert case.notes == ["mine: attentive probe: 20 of 60 training images of coloured-0, to bound memory."]
    assert (rows.shape, rows.dtype) == ((20, 49, 3), torch.float16)
    chosen = [59 * i // 19 for i in range(20)]  # evenly spaced, from the first to the last
    assert labels.tolist() == [i % 3 for i in chosen]
    sizes = torch.from_numpy(coloured(60, seed=0).images).float().mean((1, 2))[chosen].argmax(1)
    assert rows.float().mean(1).argmax(1).tolist() == sizes.tolist()
    assert case.data.test is not None
    assert len(protocols._tokens(case, Tokens(model), case.data.test)[0]) == 20  # as many as there are: no note
    assert len(case.notes) == 1


@pytest.mark.parametrize("protocol", ["attentive", "semi-supervised"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_protocols_that_extract_anew_have_the_precision_asked_for(protocol: str, precision: Any) -> None:
    found = set[bool]()

    class Spatial(MeanColour):
        def forward_features(self, images: torch.Tensor) -> torch.Tensor:
            found.add(torch.is_autocast_enabled("cpu"))
            return images * self.scale

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            if not self.training:  # fine-tuning itself is in float32
                found.add(torch.is_autocast_enabled("cpu"))
            return super().forward(images)

    train, test = coloured(60, seed=0), coloured(30, seed=1)
    how: dict[str, Any] = {"device": "cpu", "baselines": False, "progress": False}
    evaluate(Spatial(), train, test=test, protocol=protocol, precision=precision, **how)
    assert found == {precision == "bfloat16"}


def test_a_network_without_parameters_is_not_fine_tuned() -> None:
    model = nn.Sequential(nn.AvgPool2d(8), nn.Flatten())
    case = case_of(right_but_for(0), coloured(60, seed=0), coloured(30, seed=1), model=model)
    assert PROTOCOLS["semi-supervised"].measure(case).scores == {}
    assert case.notes == ["mine: no fine-tuning: Sequential has no parameters to fine-tune."]


def test_label_free_figures_are_of_the_train_features() -> None:
    case = case_of(right_but_for(0), coloured(60, seed=0), coloured(30, seed=1))
    outcome = PROTOCOLS["label-free"].measure(case)
    assert outcome.details["rankme"] == {"features": 3}
    assert outcome.scores["rankme"].value == pytest.approx(3, abs=1e-3)  # three orthogonal classes of equal size
    assert outcome.scores["centred_effective_rank"].value == pytest.approx(2, abs=1e-3)
    assert outcome.scores["rankme"].n == 60


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("knn", ("knn",)),
        (["few_shot", "label_free"], ("few-shot", "label-free")),
        (("linear", "knn", "linear"), ("linear", "knn")),
        (["few_shot", "few-shot"], ("few-shot",)),
    ],
)
def test_protocols_are_chosen_once_each_in_the_order_given(names: Any, expected: tuple[str, ...]) -> None:
    assert chosen_protocols(names) == expected


def test_an_error_lists_every_protocol() -> None:
    with pytest.raises(ValueError, match=re.escape(f"protocol is ['knn', 'svm']; choose from {', '.join(PROTOCOLS)}")):
        chosen_protocols(["knn", "svm"])
