"""The map: groups stay together; columns of colours."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from ssole.errors import DataError
from ssole.report import points
from ssole.report.points import colourings, place


def groups(each: int, count: int = 4) -> tuple[torch.Tensor, np.ndarray[Any, Any]]:
    centres = 5 * torch.eye(16)[:count]
    features = (centres[:, None] + 0.3 * torch.randn(count, each, 16)).flatten(0, 1)
    return features, np.repeat(np.arange(count), each)


@pytest.mark.parametrize("landmarks", [2000, 60], ids=["all by t-SNE", "most beside landmarks"])
def test_groups_stay_together(landmarks: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(points, "LANDMARKS", landmarks)
    features, labels = groups(50)
    found = place(features)
    assert found.shape == (200, 2)
    assert np.isfinite(found).all()
    distance = ((found[:, None] - found[None]) ** 2).sum(-1)
    np.fill_diagonal(distance, np.inf)
    assert (labels[distance.argmin(1)] == labels).mean() > 0.97
    np.testing.assert_array_equal(found, place(features))


@pytest.mark.parametrize("value", [0.0, 0.3])
@pytest.mark.parametrize("count", [100, 700])
def test_equal_features_are_one_point(value: float, count: int) -> None:
    assert place(torch.full((count, 8), value) * torch.arange(1, 9)).tolist() == [[0.0, 0.0]] * count


@pytest.mark.parametrize("count", [1, 4, 5, 20])
def test_few_points(count: int) -> None:
    assert place(torch.randn(count, 8)).shape == (count, 2)


def sample(labels: list[int], ids: list[str] | None = None) -> Any:
    known = torch.tensor(labels)
    ids = ids or [f"{number}.png" for number in range(len(labels))]

    class Train(SimpleNamespace):
        def __len__(self) -> int:
            return len(known)

    train = Train(after=torch.randn(len(labels), 4), labels=known, id=lambda row: ids[row])
    labelled = bool((known >= 0).any())
    return SimpleNamespace(
        train=train, labelled=labelled, name_of=lambda label: "no label" if label < 0 else f"c{label}"
    )


def test_labels_and_clusters() -> None:
    first, second = colourings(sample([0, 1, 1, -1] * 5), None)
    assert (first.name, first.names) == ("label", ["c0", "c1", "no label"])
    assert first.codes[:4].tolist() == [0, 1, 1, 2]
    assert second.name == "cluster"
    assert [one.name for one in colourings(sample([-1] * 12), None)] == ["cluster"]


def test_rare_values_share_a_colour() -> None:
    labels = [*list(range(19)) * 2, *range(19, 30)]
    first, _ = colourings(sample(labels), None)
    assert first.names[-1] == "11 others"
    assert len(first.names) == 20
    assert set(first.codes[-11:].tolist()) == {19}


def test_columns_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "columns.csv"
    lines = ["id,camera,heat"] + [f"{number}.png,{'left' if number % 2 else ''},{number / 2}" for number in range(40)]
    path.write_text("\n".join(lines), encoding="utf-8")
    _, camera, heat = colourings(sample([-1] * 41), path)  # the last image is not in the file
    assert camera.names == ["left", "unknown"]
    assert heat.names[0] == "0 to 2.438"
    assert heat.names[-1] == "unknown"
    assert np.bincount(heat.codes).tolist() == [5] * 8 + [1]
    assert (np.diff(heat.codes.astype(int)) >= 0).all()


@pytest.mark.parametrize("content", [b"", b"\xff\xfe\x00"], ids=["empty", "not text"])
def test_a_file_that_is_no_table(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "columns.csv"
    path.write_bytes(content)
    with pytest.raises(DataError, match=r"columns\.csv is not a CSV file with a line of headings"):
        colourings(sample([-1] * 10), path)
    with pytest.raises(DataError, match=r"nowhere\.csv"):
        colourings(sample([-1] * 10), tmp_path / "nowhere.csv")
