"""The repository as a whole: versions, shipped files, links, scripts. Snippets of its pages are in test_docs.py."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
SOURCES = ROOT / "src" / "ssole"
PAGES = [*sorted(ROOT.glob("*.md")), *sorted((ROOT / "docs").rglob("*.md"))]


def text_files() -> list[Path]:
    """Files of the project, where there may be no git to ask."""
    folders = [ROOT / name for name in ("src", "tests", "benchmarks", "experiments", "docs", "scripts", ".ci")]
    files = [path for folder in folders for path in folder.rglob("*")] + list(ROOT.glob("*.*")) + [ROOT / "Makefile"]
    texts = {".py", ".md", ".toml", ".yaml", ".json", ".jsonl", ".cff", ".sh", ".html", ""}
    outside = {"__pycache__", ".git"}  # in a second working tree, .git is a file with the path of the first
    return [path for path in files if path.is_file() and path.suffix in texts and not outside & {*path.parts}]


def find(pattern: str, path: Path) -> str:
    match = re.search(pattern, path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    assert match, f"{path.name} has no match for {pattern!r}"
    return match[1]


def test_one_version_everywhere() -> None:
    import ssole

    declared = find(r'^version = "(.+)"', ROOT / "pyproject.toml")
    assert ssole.__version__ == declared
    assert find(r"^version: (.+)$", ROOT / "CITATION.cff") == declared
    assert find(r"^## (\S+)", ROOT / "CHANGELOG.md") == declared


def test_the_wheel_ships_recipes_and_types(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)]
    subprocess.run(command, cwd=ROOT, check=True, capture_output=True, timeout=120)
    (wheel,) = tmp_path.glob("*.whl")
    shipped = set(zipfile.ZipFile(wheel).namelist())
    package = {path.relative_to(ROOT / "src").as_posix() for path in SOURCES.rglob("*") if path.is_file()}
    assert {name for name in package if "__pycache__" not in name} <= shipped
    assert {"ssole/py.typed", "ssole/recipes/digits-m.yaml"} <= shipped
    assert not [name for name in shipped if not name.startswith(("ssole/", "ssole-"))]


def test_recipes_are_those_promised() -> None:
    from ssole.config import recipe_names

    promised = {
        "digits-m",
        "cifar10-cpu",
        "cifar10",
        "cifar10-speedrun",
        "imagenet100",
        "imagenet1k",
        "small-images",
        "photos",
    }
    assert promised <= set(recipe_names())
    assert {path.stem for path in (ROOT / "recipes").glob("*.yaml")} == set(recipe_names())
    listed = set(re.findall(r"^\| `([\w-]+)` \|", (ROOT / "README.md").read_text(encoding="utf-8"), flags=re.MULTILINE))
    assert listed == set(recipe_names()), "the README's table of recipes"


def test_no_path_of_someones_machine() -> None:
    somewhere = re.compile(r"(?<![\w.~/$}-])/" + r"(?:home|root|Users|work)/[\w.-]+")
    found = [
        f"{path.relative_to(ROOT)}:{number}: {match[0]}"
        for path in text_files()
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1)
        if (match := somewhere.search(line))
    ]
    assert not found


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    prose = re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL)
    targets = re.findall(r"\]\(([^)#\s]+)", prose)
    local = [target for target in targets if not target.startswith(("http://", "https://"))]
    assert [target for target in local if not (page.parent / target).exists()] == []


def install(tmp_path: Path, python: str) -> subprocess.CompletedProcess[str]:
    """Run scripts/install.sh in an empty checkout with the interpreter `python`."""
    (tmp_path / "scripts").mkdir()
    shutil.copy(ROOT / "scripts" / "install.sh", tmp_path / "scripts")
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = ["sh", str(tmp_path / "scripts" / "install.sh")]
    return subprocess.run(command, env={**os.environ, "PYTHON": python}, capture_output=True, text=True, timeout=60)


def fake_python(tmp_path: Path, body: str) -> str:
    path = tmp_path / "fake-python"
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_install_says_that_python_is_missing(tmp_path: Path) -> None:
    done = install(tmp_path, "no-such-python")
    assert done.returncode == 1
    assert "'no-such-python' was not found" in done.stderr
    assert "apt-get install -y python3 python3-venv" in done.stderr


def test_install_says_that_python_is_too_old(tmp_path: Path) -> None:
    # answers 3.8 when asked for its version, and no to being new enough
    done = install(tmp_path, fake_python(tmp_path, 'case "$2" in *print*) echo 3.8;; *) exit 1;; esac'))
    assert done.returncode == 1
    assert "is Python 3.8, but 3.10 or newer is needed" in done.stderr


def test_install_says_that_venv_is_missing(tmp_path: Path) -> None:
    # as Debian's python3 without python3-venv: runs, but has no ensurepip
    body = f'case "$2" in *ensurepip*) exit 1;; *) exec {sys.executable} "$@";; esac'
    done = install(tmp_path, fake_python(tmp_path, body))
    assert done.returncode == 1
    assert f"apt-get install -y python{sys.version_info[0]}.{sys.version_info[1]}-venv" in done.stderr
    assert not (tmp_path / ".venv").exists()


def demo(checkout: Path, *arguments: str) -> list[str]:
    """Calls of the ssole command by `make demo`. Here it only notes its arguments and makes the files of a run."""
    shutil.copy(ROOT / "Makefile", checkout)
    command = checkout / ".venv" / "bin" / "ssole"
    command.parent.mkdir(parents=True, exist_ok=True)
    body = """echo "$@" >> calls
    if [ "$1" = pretrain ]; then
        mkdir -p runs/demo/checkpoints
        touch runs/demo/checkpoints/1 runs/demo/backbone.safetensors
    fi"""
    command.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    command.chmod(0o755)
    calls = checkout / "calls"
    calls.unlink(missing_ok=True)
    environment = {name: value for name, value in os.environ.items() if name not in {"MAKEFLAGS", "MAKELEVEL", "FRESH"}}
    make = ["make", "-o", "install", "demo", *arguments]  # -o: without installing
    subprocess.run(make, cwd=checkout, env=environment, check=True, capture_output=True, timeout=60)
    return calls.read_text(encoding="utf-8").splitlines()


@pytest.mark.skipif(shutil.which("make") is None, reason="make is not installed")
def test_make_demo_can_run_again(tmp_path: Path) -> None:
    trains, resumes = "pretrain --out runs/demo", "pretrain --resume runs/demo"
    shows = ["eval runs/demo", "report runs/demo"]
    assert demo(tmp_path) == [trains, *shows]
    assert demo(tmp_path) == shows  # finished: only evaluated again
    (tmp_path / "runs/demo/backbone.safetensors").unlink()
    assert demo(tmp_path) == [resumes, *shows]  # interrupted
    assert demo(tmp_path, "FRESH=1") == [trains, *shows]
    (tmp_path / "runs/demo/backbone.safetensors").unlink()
    (tmp_path / "runs/demo/checkpoints/1").unlink()
    assert demo(tmp_path) == [trains, *shows]  # interrupted before its first checkpoint


def test_every_dependency_has_its_reason_and_its_licence() -> None:
    """Of the package itself and of the extras that users install."""
    tomllib = pytest.importorskip("tomllib")  # from Python 3.11 on
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    extras = (project["optional-dependencies"][name] for name in ("export", "report", "search", "plot", "tensorboard"))
    lines = [*project["dependencies"], *(line for extra in extras for line in extra)]
    wanted = {re.split(r"[^\w-]", line)[0] for line in lines}
    table = (
        (ROOT / "docs" / "design.md").read_text(encoding="utf-8").partition("### Dependencies")[2].partition("##")[0]
    )
    rows = [[cell.strip() for cell in line.split("|")[1:-1]] for line in table.splitlines() if line.startswith("| ")][
        1:
    ]
    assert {name for names, _, _ in rows for name in names.split(", ")} == wanted
    assert {licence for _, _, licence in rows} <= {
        "Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "MIT", "MIT-CMU", "PSF-based"
    }  # fmt: skip
