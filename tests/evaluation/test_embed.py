"""Files of embeddings: both kinds hold all of them, without pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssole.evaluation.embed import Embeddings


def test_embeddings_are_saved_whole(tmp_path: Path) -> None:
    from pyarrow import parquet

    array = np.arange(6, dtype=np.float32).reshape(3, 2)
    names = ["a/ü.png", "b.png", "c.png"]
    kept = Embeddings(array=array, ids=names, labels=np.array([1, -1, 0]), classes=["cat", "dog"])
    assert repr(kept) == "Embeddings(3 images, 2 features)"
    with np.load(kept.save(tmp_path / "e.npz")) as file:
        assert sorted(file.files) == ["array", "classes", "ids", "labels"]
        assert np.array_equal(file["array"], array)
        assert file["ids"].tolist() == names
        assert file["labels"].tolist() == [1, -1, 0]
        assert file["classes"].tolist() == ["cat", "dog"]
    rows = parquet.read_table(kept.save(tmp_path / "e.parquet")).to_pylist()
    assert rows[0] == {"id": "a/ü.png", "embedding": [0.0, 1.0], "label": 1, "class": "dog"}
    assert [row["class"] for row in rows] == ["dog", None, "cat"]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["e.npz", "e.parquet"]
    bare = parquet.read_table(Embeddings(array=array, ids=names).save(tmp_path / "f.parquet"))
    assert bare.column_names == ["id", "embedding"]
    with pytest.raises(ValueError, match=r"'e.pt': end the name in .npz or .parquet"):
        kept.save(tmp_path / "e.pt")
    with pytest.raises(ValueError, match=r"shape \(3, 2\) with 1 ids"):
        Embeddings(array=array, ids=["a"])
