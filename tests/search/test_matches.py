"""Matches as a list of images that can be opened as data."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from ssole.config import ConfigError
from ssole.data.folder import ListSource
from ssole.errors import DataError
from ssole.search.matches import Matches, saved_ids


def test_the_table_opens_as_data(tmp_path: Path) -> None:
    names = ['a,"b".png', "line\nbreak.png", "<script>.png"]
    found = Matches(rows=np.arange(3), ids=names, similarity=np.array([np.nan, 0.5, -1]), labels=["cat", "", "dog"])
    assert found.save(tmp_path / "list.csv") == tmp_path / "list.csv"
    with pytest.raises(ConfigError, match="exists, and labels that were filled in would be lost"):
        found.save(tmp_path / "list.csv")
    source = ListSource(tmp_path / "list.csv")
    assert [source.id(i) for i in range(3)] == names
    assert source.classes == ["cat", "dog"]
    assert source.labels is not None
    assert source.labels.tolist() == [0, -1, 1]
    lines = (tmp_path / "list.csv").read_text().splitlines()
    assert (lines[0], lines[1], lines[-1]) == (
        "path,label,similarity",
        '"a,""b"".png",cat,',
        "<script>.png,dog,-1.000000",
    )


def test_ids_of_a_list_are_those_that_were_found(tmp_path: Path) -> None:
    """Also those that no list of data may name, such as the paths of an index of files elsewhere."""
    names = ["/elsewhere/a.png", " b.png", "x.tar:../c.png"]
    Matches(rows=np.arange(3), ids=names, similarity=np.ones(3), labels=[""] * 3).save(tmp_path / "list.csv")
    assert saved_ids(tmp_path / "list.csv") == names
    (tmp_path / "other.csv").write_text("name\nx\n")
    for wrong in ("other.csv", "nowhere.csv"):
        with pytest.raises(DataError, match=f"Cannot read the column path of .*{wrong}"):
            saved_ids(tmp_path / wrong)
