"""Weighted kNN against a naive float64 oracle, scikit-learn, and what must not matter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from ssole.evaluation import knn
from ssole.evaluation.knn import knn_classify, nearest, nearest_others


def problem(n: int = 400, q: int = 90, f: int = 12, classes: int = 7) -> tuple[torch.Tensor, ...]:
    labels = torch.randint(classes, (n + q,))
    features = torch.randn(classes, f)[labels] + 1.5 * torch.randn(n + q, f)
    return features[:n], labels[:n], features[n:], labels[n:]


def naive(
    train: torch.Tensor, labels: torch.Tensor, test: torch.Tensor, k: int, tau: float, classes: int
) -> NDArray[np.float64]:
    """The definition, one query at a time, in float64."""
    scores = np.zeros((len(test), classes))
    for i, query in enumerate(test.double().numpy()):
        similarity = [
            (-float(query @ row / np.linalg.norm(query) / np.linalg.norm(row)), j)
            for j, row in enumerate(train.double().numpy())
        ]
        for negative, j in sorted(similarity)[:k]:
            scores[i, int(labels[j])] += np.exp(-negative / tau)
    return scores / scores.sum(1, keepdims=True)


@pytest.mark.parametrize("tau", [0.07, 1.0])
def test_scores_are_those_of_the_definition(tau: float) -> None:
    train, labels, test, _ = problem()
    found = knn_classify(train, labels, test, k=(20, 1, 10), tau=tau)
    assert list(found) == [20, 1, 10]
    for k, scores in found.items():
        np.testing.assert_allclose(scores.numpy(), naive(train, labels, test, k, tau, 7), rtol=1e-4, atol=1e-6)


def test_predictions_are_those_of_scikit_learn() -> None:
    from sklearn.neighbors import KNeighborsClassifier

    train, labels, test, _ = problem()
    reference = KNeighborsClassifier(20, metric="cosine", weights=lambda distance: np.exp((1 - distance) / 0.07))
    reference.fit(train.double().numpy(), labels.numpy())
    scores = knn_classify(train, labels, test)[20]
    assert scores.argmax(1).tolist() == reference.predict(test.double().numpy()).tolist()
    np.testing.assert_allclose(scores.numpy(), reference.predict_proba(test.double().numpy()), rtol=1e-4, atol=1e-6)


def test_scale_of_the_features_and_blocks_of_queries_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    train, labels, test, _ = problem()
    whole = knn_classify(train, labels, test)[10]
    scaled = knn_classify(train * torch.rand(len(train), 1).add(0.1), labels, test * 100)[10]
    torch.testing.assert_close(scaled, whole, rtol=1e-4, atol=1e-6)
    monkeypatch.setattr(knn, "SIMILARITY_BYTES", 4 * len(train) * 7)  # seven queries at a time
    torch.testing.assert_close(knn_classify(train, labels, test)[10], whole, rtol=1e-4, atol=1e-6)


def test_rotation_and_order_of_the_training_images_do_not_matter() -> None:
    train, labels, test, _ = problem()
    whole = knn_classify(train, labels, test)[20]
    rotation, order = torch.linalg.qr(torch.randn(12, 12)).Q, torch.randperm(len(train))
    torch.testing.assert_close(knn_classify(train @ rotation, labels, test @ rotation)[20], whole, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(knn_classify(train[order], labels[order], test)[20], whole, rtol=1e-4, atol=1e-6)


def test_the_lowest_index_is_taken_among_equally_similar_images() -> None:
    # One axis of each: exact zeros and ones, so that similarities are equal to the last bit.
    train = torch.eye(4)[[0, 1, 1, 0, 1, 0, 1, 1]]
    similarity, index = nearest(train, torch.eye(4)[[1, 0, 2]], 4)
    assert index.tolist() == [[1, 2, 4, 6], [0, 3, 5, 1], [0, 1, 2, 3]]
    assert similarity.tolist() == [[1, 1, 1, 1], [1, 1, 1, 0], [0, 0, 0, 0]]


def test_collapsed_and_zero_features_give_an_answer() -> None:
    labels = torch.arange(50) % 5
    for row in (torch.ones(1, 3), torch.zeros(1, 3)):
        scores = knn_classify(row.expand(50, 3), labels, row.expand(6, 3), k=(10,))[10]
        torch.testing.assert_close(scores, torch.full((6, 5), 0.2))
        assert scores.argmax(1).tolist() == [0] * 6


def test_a_tiny_temperature_is_the_nearest_neighbour() -> None:
    train, labels, test, _ = problem()
    one = knn_classify(train, labels, test, k=(1,))[1]
    torch.testing.assert_close(knn_classify(train, labels, test, k=(20,), tau=1e-5)[20], one, rtol=0, atol=1e-3)


def test_the_callers_precision_settings_neither_matter_nor_change() -> None:
    train, labels, test, _ = problem()
    whole = knn_classify(train, labels, test)[20]
    torch.set_float32_matmul_precision("medium")
    try:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            inside = knn_classify(train, labels, test)[20]
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")
    assert torch.equal(inside, whole)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"k": (20, 401)}, r"k is \(20, 401\) and there are 400 training images"),
        ({"k": (0,)}, r"k is \(0,\)"),
        ({"k": ()}, r"k is \(\)"),
        ({"tau": 0.0}, "tau is 0.0"),
        ({"num_classes": 3}, r"labels range from 0 to 6; they must be in \[0, 3\)"),
        ({"train_labels": torch.zeros(3, dtype=torch.int64)}, "one integer for each of the 400"),
        ({"train_labels": torch.zeros(400)}, "dtype torch.float32"),
        ({"train_labels": torch.full((400,), -1)}, "labels range from -1"),
        ({"train_features": np.zeros((400, 12))}, "train features are a ndarray; a tensor is needed"),
        ({"train_labels": np.zeros(400, dtype=np.int64)}, "labels are a ndarray; a tensor is needed"),
        ({"test_features": torch.zeros(5, 11)}, "last dimensions must be equal"),
        ({"test_features": torch.zeros(0, 12)}, "there is nothing to evaluate"),
        ({"train_features": torch.zeros(0, 12), "train_labels": torch.zeros(0, dtype=torch.int64)}, "nothing to eval"),
        ({"test_features": torch.zeros(5, 12, dtype=torch.int64)}, "floating-point"),
        ({"test_features": torch.full((5, 12), torch.nan)}, "test features hold NaN or infinity in 5 of 5 rows"),
    ],
)
def test_what_cannot_be_classified_is_named(change: dict[str, object], message: str) -> None:
    train, labels, test, _ = problem()
    arguments: dict[str, object] = {"train_features": train, "train_labels": labels, "test_features": test}
    with pytest.raises(ValueError, match=message):
        knn_classify(**(arguments | change))  # type: ignore[arg-type]


def test_a_single_number_of_neighbours() -> None:
    train, labels, test, _ = problem()
    assert torch.equal(knn_classify(train, labels, test, k=20)[20], knn_classify(train, labels, test)[20])


@pytest.mark.cuda
def test_a_gpu_gives_the_same_scores() -> None:
    if not torch.cuda.is_available():
        pytest.skip("needs an NVIDIA GPU")
    train, labels, test, _ = problem()
    on_cpu = knn_classify(train, labels, test)[20]
    on_gpu = knn_classify(train.cuda(), labels, test.cuda())[20]
    torch.testing.assert_close(on_gpu.cpu(), on_cpu, rtol=1e-4, atol=1e-5)


def test_others_are_those_of_brute_force() -> None:
    features = torch.randn(40, 6)
    unit = (features / features.norm(dim=1, keepdim=True)).numpy()
    cosine = unit @ unit.T
    np.fill_diagonal(cosine, -2)
    similarity, index = nearest_others(features, torch.arange(40), 5)
    np.testing.assert_array_equal(index.numpy(), np.argsort(-cosine, axis=1)[:, :5])
    np.testing.assert_allclose(similarity.numpy(), -np.sort(-cosine, axis=1)[:, :5], atol=1e-6)


def test_an_image_is_not_its_own_neighbour_even_among_copies() -> None:
    index = nearest_others(torch.ones(8, 3), torch.arange(8), 2)[1]
    assert not (index == torch.arange(8)[:, None]).any()
    assert nearest_others(torch.randn(3, 4), torch.arange(3), 6)[1].shape == (3, 2)
