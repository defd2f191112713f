"""The shape of the code: sizes of files and functions, and tests that mirror the package."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = ROOT / "src" / "ssole"
MODULES = sorted(PACKAGE.rglob("*.py"))
MOST_LINES_OF_A_FILE, MOST_LINES_OF_A_FUNCTION = 300, 50
REASON = "Long because"  # how a docstring begins the sentence that says why a file or function is longer
# Tests of several modules together; the part before the underscore names the main one.
SCENARIOS = {"loop_faults", "loop_processes", "loop_resume", "step_launches"}


def names(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def functions(tree: ast.AST) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    return (node for node in ast.walk(tree) if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)))


def gives_a_reason(node: ast.Module | ast.FunctionDef | ast.AsyncFunctionDef) -> bool:
    return REASON in (ast.get_docstring(node) or "")


@pytest.mark.parametrize("path", MODULES, ids=names)
def test_long_files_and_functions_say_why(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    lines = text.count("\n")
    assert lines <= MOST_LINES_OF_A_FILE or gives_a_reason(tree), f"{lines} lines: split it, or say {REASON!r} ..."
    for function in functions(tree):
        assert function.end_lineno is not None
        length = function.end_lineno - function.lineno + 1
        wanted = f"{function.name} has {length} lines: split it, or say {REASON!r} ..."
        assert length <= MOST_LINES_OF_A_FUNCTION or gives_a_reason(function), wanted


def test_every_test_file_is_named_after_its_module() -> None:
    packages = [folder.name for folder in PACKAGE.iterdir() if (folder / "__init__.py").is_file()]
    wrong = []
    for package in packages:
        for path in (ROOT / "tests" / package).glob("test_*.py"):
            name = path.stem.removeprefix("test_")
            if name not in SCENARIOS and not (PACKAGE / package / f"{name}.py").is_file():
                wrong.append(path.relative_to(ROOT).as_posix())
    assert wrong == []
