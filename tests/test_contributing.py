"""Guides of CONTRIBUTING.md: what they name in the package is there. (Their snippets are run by test_docs.py.)"""

from __future__ import annotations

import functools
import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt

ROOT = Path(__file__).parent.parent
PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
GUIDES = {text.splitlines()[0]: text for text in PAGE.split("\n## ") if text.startswith("How to add")}
MADE_BY_THE_GUIDES = {"count", "invert", "INVERT"}
"""Names of the examples that no snippet defines."""


def inline_codes(guide: str) -> list[str]:
    tokens = [child for token in MarkdownIt("commonmark").parse(guide) for child in token.children or []]
    return [token.content for token in tokens if token.type == "code_inline"]


@functools.cache
def words_of_the_package() -> set[str]:
    texts = [path.read_text(encoding="utf-8") for path in (ROOT / "src").rglob("*.py")]
    return {word for text in texts for word in re.findall(r"\w+", text)}


def test_there_are_five_guides() -> None:
    assert [title.split()[-1] for title in GUIDES] == ["source", "operation", "loss", "metric", "command"]


@pytest.mark.parametrize("title", GUIDES)
def test_names_of_the_guide_are_in_the_package(title: str) -> None:
    codes = inline_codes(GUIDES[title])
    blocks = " ".join(re.findall(r"```python\n(.*?)```", GUIDES[title], flags=re.DOTALL))
    known = words_of_the_package() | set(re.findall(r"\w+", blocks)) | MADE_BY_THE_GUIDES
    names = {name for code in codes if re.fullmatch(r"[\w.]+", code) for name in code.split(".") if name.isidentifier()}
    assert names - known - {"py"} == set()


@pytest.mark.parametrize("title", GUIDES)
def test_files_and_folders_of_the_guide_are_there(title: str) -> None:
    made = set(re.findall(r"tests/\w+/\w+\.py|src/ssole/cli/count\.py", GUIDES[title]))
    for path in {code for code in inline_codes(GUIDES[title]) if re.match(r"(src|tests|docs)/", code)}:
        assert (ROOT / path).exists() or (path in made and (ROOT / path).parent.is_dir()), path
