"""Snippets of the README and of the docs: each runs, on tiny images, in seconds. Every public name has a docstring."""

from __future__ import annotations

import contextlib
import functools
import importlib
import inspect
import io
import re
import shlex
import tarfile
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from markdown_it import MarkdownIt

import ssole
import tiny
from ssole.cli import COMMANDS

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").rglob("*.md"))]

MARKDOWN = MarkdownIt("commonmark")

# What makes a snippet short: a few steps of a few images. All other settings are those that the page shows.
SHORT: dict[str, Any] = {
    "steps": 2, "batch_size": 4, "log_every": 1, "knn_every": None, "device": "cpu",
    "model.projector_hidden": 8, "model.projector_dim": 8,
}  # fmt: skip
LANGUAGES_NOT_RUN = {"bibtex", "text", "{toctree}", "{eval-rst}"}
METHOD_LIKE = (property, classmethod, staticmethod, functools.cached_property)
SHORT_FLAGS = {
    "pretrain": [f"--{name.replace('_', '-')}={value}" for name, value in SHORT.items()],
    "compare": [
        *("--budget=2steps", "--seeds=1", "--search=0", "--set"),
        *(f"{name}={'null' if value is None else value}" for name, value in SHORT.items() if name != "steps"),
    ],
    "doctor": ["--no-estimate"],
    "eval": ["--protocol=knn"],  # the probe's decomposition of raw pixels takes 10 s
}


@dataclass(frozen=True)
class Snippet:
    """Fenced block of a page."""

    page: Path
    line: int
    language: str
    not_run: str | None
    """Why it is not run: ```` ```python not-run="needs a network" ````."""
    text: str

    @property
    def place(self) -> str:
        return f"{self.page.relative_to(ROOT)}:{self.line}"


def snippets(page: Path) -> list[Snippet]:
    """Fenced blocks of a page, those within lists and HTML among them."""
    tokens = MARKDOWN.parse(page.read_text(encoding="utf-8"))
    found = []
    for token in tokens:
        if token.type == "fence":
            language, _, rest = token.info.strip().partition(" ")
            reason = re.fullmatch(r'not-run="(.+)"', rest.strip())
            assert reason or not rest, f"{page.name}: what does {rest!r} mean?"
            assert token.map is not None
            found.append(Snippet(page, token.map[0] + 1, language, reason[1] if reason else None, token.content))
    return found


def inline_commands(page: Path, program: str) -> list[list[str]]:
    """Arguments of each `PROGRAM COMMAND ...` within the text of a page."""
    tokens = [child for token in MARKDOWN.parse(page.read_text(encoding="utf-8")) for child in token.children or []]
    codes = [token.content for token in tokens if token.type == "code_inline"]
    return [shlex.split(code)[1:] for code in codes if re.match(rf"{program} [a-z]", code)]


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Folder with the files that the pages name, and short runs."""
    from PIL import Image

    pretrain, evaluate, compare = ssole.pretrain, ssole.evaluate, ssole.compare
    shared = {name: value for name, value in SHORT.items() if name != "steps"}
    short = {"budget": "2steps", "seeds": 1, "search": 0, **shared}
    monkeypatch.setattr(ssole, "compare", lambda *data, **given: compare(*data, **{**given, **short}))
    monkeypatch.setattr(ssole, "pretrain", lambda *data, **given: pretrain(*data, **{**given, **SHORT}))
    monkeypatch.setattr(ssole, "evaluate", lambda *data, **given: evaluate(*data, **{"protocol": "knn", **given}))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("ssole.training.dry_run.MAX_TRIAL_STEPS", 3)  # by which the time of a step is measured
    torch.set_num_threads(1)  # for work this small, a second one only waits
    tiny.write_folder(tmp_path / "photos", 32)
    tiny.write_folder(tmp_path / "photos-to-test-on", 8, size=16)
    names = [path.relative_to(tmp_path / "photos").as_posix() for path in sorted(tmp_path.glob("photos/*/*.png"))]
    (tmp_path / "photos" / "train.csv").write_text("path,label\n" + "".join(f"{n},{n[:3]}\n" for n in names))
    (tmp_path / "photos" / "list.txt").write_text("\n".join(names))
    (tmp_path / "shards").mkdir()
    for number in range(147):
        with tarfile.open(tmp_path / "shards" / f"imagenet-{number:04}.tar", "w") as tar:
            tar.add(tmp_path / "photos" / names[number % len(names)], f"{number}.png")
    with zipfile.ZipFile(tmp_path / "photos.zip", "w") as file:
        for name in names:
            file.write(tmp_path / "photos" / name, name)
    images = tiny.images(32)
    np.save(tmp_path / "images.npy", images)
    np.savez(tmp_path / "medmnist.npz", train_images=images, train_labels=np.arange(len(images)) % 2)
    Image.fromarray(images[0]).save(tmp_path / "image.png")
    return tmp_path


def run_python(snippet: Snippet, names: dict[str, Any]) -> None:
    """Run a block in the namespace of its page; a traceback names the page and its line."""
    source = "\n" * snippet.line + snippet.text
    code = compile(source, str(snippet.page), "exec", dont_inherit=True)
    if snippet.not_run is None:
        exec(code, names)  # noqa: S102 - our own text


def write_file(snippet: Snippet) -> None:
    """Write a YAML block to the file that its first line, a comment, names."""
    name = re.match(r"# ([\w-]+\.yaml)\n", snippet.text)
    assert name is not None, f"{snippet.place}: the first line should be a comment with the file's name"
    Path(name[1]).write_text(snippet.text, encoding="utf-8")


def run_shell(snippet: Snippet) -> None:
    """Run the `ssole` commands of a block, and check what the other commands name."""
    for line in snippet.text.replace("\\\n", "").splitlines():
        for command in line.split("&&"):
            words = shlex.split(command, comments=True)
            while words and re.match(r"[A-Z_]+=", words[0]):  # a variable that is set for this command
                words = words[1:]
            if words:
                assert words[0] in CHECKS, f"{snippet.place}: nothing checks {words[0]!r}"
                CHECKS[words[0]](words[1:], snippet)


def check_ssole(arguments: list[str], snippet: Snippet) -> None:
    if snippet.not_run is not None:
        check_flags(arguments)
        return
    command = arguments[0]
    is_given = {"--resume", "--protocol"} & set(arguments)
    code = tiny.main(*arguments, *([] if is_given else SHORT_FLAGS.get(command, [])))
    # the doctor's 1 says that 32 images are too few
    assert code in ({0, 1} if command == "doctor" else {0}), f"{snippet.place}: ssole {' '.join(arguments)}: {code}"


def check_make(arguments: list[str], snippet: Snippet | None = None) -> None:
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert {word for word in arguments if "=" not in word} <= targets, snippet


def check_pip(arguments: list[str], snippet: Snippet) -> None:
    extras = set(re.findall(r"^(\w+) = \[", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), flags=re.MULTILINE))
    asked = {extra for word in arguments for group in re.findall(r"\[(.*)\]", word) for extra in group.split(",")}
    assert arguments[0] == "install", snippet.place
    assert asked <= extras, snippet.place


def check_program(arguments: list[str], snippet: Snippet | None = None) -> None:
    """A script of the repository, and its options: its own, and those of the scripts beside it that it imports from."""
    script = ROOT / arguments[0]
    source = script.read_text(encoding="utf-8")
    for name in re.findall(r"^from (\w+) import ", source, flags=re.MULTILINE):
        if (beside := script.with_name(f"{name}.py")).is_file():
            source += beside.read_text(encoding="utf-8")
    options = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    assert {option for option in options if option not in source} == set(), snippet


def check_nothing(arguments: list[str], snippet: Snippet) -> None:
    """A command of the system."""


def check_environment(arguments: list[str], snippet: Snippet) -> None:
    assert arguments == ["-m", "venv", ".venv"], snippet.place


CHECKS = {
    "ssole": check_ssole,
    "make": check_make,
    "pip": check_pip,
    "python": check_program,
    "python3": check_environment,
    ".": check_nothing,  # a virtual environment is activated
    "bash": check_program,
    "cd": check_nothing,
    "git": check_nothing,
}


@functools.cache
def help_page(command: str) -> str:
    with contextlib.redirect_stdout(io.StringIO()) as page:
        assert tiny.main(command, "--help") == 0, f"there is no command ssole {command}"
    return page.getvalue()


def check_flags(arguments: list[str]) -> None:
    """The command exists, and so does each of its flags."""
    flags = {word.partition("=")[0] for word in arguments if word.startswith("--")}
    found = set(re.findall(r"--[\w.-]+", help_page(arguments[0])))
    assert flags <= found | {"--help"}, f"ssole {arguments[0]} does not know {sorted(flags - found)}"


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # 32 images of noise give rise to many warnings, all of them right
@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_snippets_run(page: Path, request: pytest.FixtureRequest) -> None:
    names: dict[str, Any] = {"__name__": "__main__"}
    found = snippets(page)
    if found:
        request.getfixturevalue("workplace")
    for snippet in found:
        if snippet.language == "python":
            run_python(snippet, names)
        elif snippet.language == "sh":
            run_shell(snippet)
        elif snippet.language == "yaml":
            write_file(snippet)
        else:
            assert snippet.language in LANGUAGES_NOT_RUN, f"{snippet.place}: nothing runs {snippet.language!r}"


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_commands_within_the_text_are_understood(page: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    for arguments in inline_commands(page, "ssole"):
        check_flags(arguments)
    for arguments in inline_commands(page, "make"):
        check_make(arguments)
    for arguments in inline_commands(page, "python"):
        check_program(arguments)


@pytest.mark.parametrize("command", COMMANDS)
def test_examples_of_the_help_are_understood(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    examples = re.findall(r"^ *ssole (.*?)(?:  .*)?$", inspect.getdoc(COMMANDS[command]) or "", flags=re.MULTILINE)
    assert any(example.startswith(command) for example in examples)
    for example in examples:
        check_flags(shlex.split(example))


def test_the_readme_shows_how_to_begin() -> None:
    texts = [snippet.text for snippet in snippets(ROOT / "README.md")]
    for shown in ("make demo", "make test", "ssole pretrain", "ssole eval", "ssole.pretrain", "SSOLELoss("):
        assert any(shown in text for text in texts), shown
    assert [snippet.place for snippet in snippets(ROOT / "README.md") if snippet.not_run] == []


MODULES = [
    ".".join(path.relative_to(ROOT / "src").with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((ROOT / "src" / "ssole").rglob("*.py"))
    if path.name != "__main__.py"
]


def has_docstring(owner: type, name: str) -> bool:
    """Whether a method says what it does, in its class or in a base class of this package."""
    classes = [kind for kind in owner.__mro__ if kind.__module__.startswith("ssole")]
    return any(inspect.getdoc(vars(kind)[name]) for kind in classes if name in vars(kind))


def undocumented(module: ModuleType) -> Iterator[str]:
    """Names of a module, its public classes and functions, and their public methods that have no docstring."""
    if not module.__doc__:
        yield module.__name__
    for name, value in vars(module).items():
        if name.startswith("_") or getattr(value, "__module__", None) != module.__name__:
            continue
        if inspect.isclass(value) or inspect.isfunction(value):
            is_synthesised = (value.__doc__ or "").startswith(f"{name}(")  # by dataclass
            if not value.__doc__ or is_synthesised:
                yield f"{module.__name__}.{name}"
        if inspect.isclass(value):
            methods = [m for m, f in vars(value).items() if inspect.isroutine(f) or isinstance(f, METHOD_LIKE)]
            yield from (
                f"{module.__name__}.{name}.{method}"
                for method in methods
                if not method.startswith("_") and not has_docstring(value, method)
            )


@pytest.mark.parametrize("name", MODULES)
def test_every_public_name_has_a_docstring(name: str) -> None:
    assert list(undocumented(importlib.import_module(name))) == []


def test_the_reference_has_every_public_name() -> None:
    """docs/conf.py adds every module."""
    text = (ROOT / "docs" / "api" / "index.md").read_text(encoding="utf-8")
    names = re.findall(r"auto(?:function|class|exception):: ssole\.(\w+)$", text, flags=re.MULTILINE)
    assert sorted(names) == sorted(ssole.__all__)


def test_no_page_has_the_address_of_a_page_that_sphinx_makes() -> None:
    """A docs/search.md would be lost: Sphinx writes its own search.html over it."""
    assert {"search", "genindex", "py-modindex"} & {page.stem for page in (ROOT / "docs").glob("*.md")} == set()
