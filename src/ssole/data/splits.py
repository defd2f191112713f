"""Which files belong to which split, told by words in their paths."""

from __future__ import annotations

import re
from typing import Literal

from ssole.data.storage import relative_to
from ssole.errors import DataError

Split = Literal["train", "test"]
TEST_NAMES = ("test", "val", "valid", "validation")  # the first that exists is the test split
_WORD = re.compile(r"[A-Za-z]+")


def split_word(path: str) -> str | None:
    """The last word of a path that names a split."""
    words = [word for word in _WORD.findall(path.lower()) if word == "train" or word in TEST_NAMES]
    return words[-1] if words else None


def files_of_split(files: list[str], root: str, split: Split) -> list[str]:
    """Those of the files that belong to the split, by the last split name in each one's path below the root.

    Raises:
        DataError: when there are none.
    """
    words = [split_word(relative_to(file, root)) for file in files]
    tests = [name for name in TEST_NAMES if name in words]
    if split == "test":
        if not tests:
            found = ", ".join(sorted({word or "no such word" for word in words}))
            raise DataError(
                f"No test split in {root}: expected files with one of {', '.join(TEST_NAMES)} in their path; "
                f"found {found}."
            )
        return [file for file, word in zip(files, words, strict=True) if word == tests[0]]
    if len(set(words)) == 1:  # a lone test file is opened when asked for by name
        return files
    files = [file for file, word in zip(files, words, strict=True) if word not in TEST_NAMES]
    if not files:
        raise DataError(f"No training split among the files in {root}: they are named {', '.join(tests)}.")
    return files
