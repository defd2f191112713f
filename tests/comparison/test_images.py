"""Images of a comparison: test images, the parts that the search sees, and samples."""

from __future__ import annotations

from pathlib import Path

import pytest
from comparing import compare

import tiny

pytestmark = pytest.mark.usefixtures("in_a_folder")


def test_without_a_test_split_a_fifth_is_held_out_of_training() -> None:
    tiny.write_folder(Path("one"), 100)
    result = compare(data="one", seeds=1)
    assert result.data["test"].endswith("20 images")
    assert result.data["train"].endswith("80 images")
    assert any("20 images held out" in note for note in result.notes)
