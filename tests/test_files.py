"""A file is there whole, or as it was."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from disk import small_files
from ssole.errors import ConfigError
from ssole.files import (
    folder_atomically,
    read_json,
    remove_leftovers,
    require_new_folder,
    write_atomically,
    write_bytes_atomically,
    write_tensors_atomically,
    write_text_atomically,
)


def test_a_file_that_a_virus_scanner_holds_for_a_moment_is_replaced(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace, refused = os.replace, [PermissionError(13, "held"), PermissionError(13, "held")]

    def held(old: Path, new: Path) -> None:
        if refused:
            raise refused.pop()
        replace(old, new)

    monkeypatch.setattr("ssole.files._WAITS", (0.0, 0.0))  # as on Windows
    monkeypatch.setattr("ssole.files.os.replace", held)
    write_text_atomically(tmp_path / "a", "new")
    assert (tmp_path / "a").read_text() == "new"


def test_text_and_bytes_arrive_and_replace(tmp_path: Path) -> None:
    path = tmp_path / "a.txt"
    write_text_atomically(path, "zwölf\n")
    assert path.read_bytes() == "zwölf\n".encode()
    write_bytes_atomically(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


@pytest.mark.parametrize("error", [OSError("disk full"), KeyboardInterrupt()])
def test_a_writer_that_fails_leaves_the_old_file_and_nothing_else(tmp_path: Path, error: BaseException) -> None:
    path = tmp_path / "a.txt"
    path.write_text("old")

    def write(temporary: Path) -> None:
        temporary.write_text("ne")
        assert path.read_text() == "old"  # nobody sees the half that is there so far
        raise error

    with pytest.raises(type(error)):
        write_atomically(path, write)
    assert [(entry.name, entry.read_text()) for entry in tmp_path.iterdir()] == [("a.txt", "old")]


def test_a_full_disk_names_the_file(tmp_path: Path) -> None:
    def write_bytes(path: Path) -> None:
        write_bytes_atomically(path, bytes(20_000))

    def write_tensors(path: Path) -> None:
        write_tensors_atomically(path, {"a": torch.zeros(20_000)}, {"format": "pt"})

    for write in (write_bytes, write_tensors):
        with small_files(), pytest.raises(OSError, match=r"^\[Errno 27\] File too large: '.*/a\.file'$"):
            write(tmp_path / "a.file")
        assert list(tmp_path.iterdir()) == []
    write_tensors(tmp_path / "a.file")
    assert load_file(tmp_path / "a.file")["a"].shape == (20_000,)


def test_an_error_of_the_temporary_file_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"No such file or directory: '.*/no/a\.txt'$"):
        write_text_atomically(tmp_path / "no" / "a.txt", "new")


@pytest.mark.parametrize("is_there", [False, True])
def test_a_new_folder_appears_when_it_is_whole(tmp_path: Path, is_there: bool) -> None:
    folder = tmp_path / "of" / "models"
    if is_there:
        folder.mkdir(parents=True)

    def fill(*, stopped: bool) -> None:
        with folder_atomically(folder) as place:
            assert not any(place.iterdir())
            (place / "a.txt").touch()
            assert folder.exists() == is_there
            if stopped:
                raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fill(stopped=True)
    assert [entry.name for entry in folder.parent.iterdir()] == ["models"] * is_there
    fill(stopped=False)
    assert [entry.relative_to(tmp_path / "of").as_posix() for entry in (tmp_path / "of").rglob("*")] == [
        "models",
        "models/a.txt",
    ]
    for path in (folder, folder / "a.txt"):
        with pytest.raises(ConfigError, match="is not an empty folder, and nothing is overwritten"):
            require_new_folder(path)


@pytest.mark.parametrize("kind", ["link", "working directory", "killed before"])
def test_a_folder_that_exists_stays_the_same_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str) -> None:
    """It may be a mount or a link, which cannot be replaced, or the directory that a shell is in."""
    folder = there = tmp_path / "there"
    there.mkdir()
    if kind == "link":
        folder = tmp_path / "link"
        folder.symlink_to(there)
    elif kind == "working directory":
        monkeypatch.chdir(there)
        folder = Path()
    else:
        (there / ".there.x7.ssole-tmp").mkdir()
    before = there.stat().st_ino
    require_new_folder(folder)
    with folder_atomically(folder) as place:
        (place / "a").mkdir()
        (place / "a" / "b.txt").write_text("text")
    assert there.stat().st_ino == before
    assert (folder / "a" / "b.txt").read_text() == "text"
    assert folder.is_symlink() == (kind == "link")
    assert [entry.name for entry in there.iterdir() if not entry.name.startswith(".")] == ["a"]


def test_an_interrupt_while_entries_are_moved_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    replace = os.replace

    def interrupted(old: Path, new: Path) -> None:
        replace(old, new)
        if Path(old).name == "b.txt" and Path(new).parent == tmp_path:
            raise KeyboardInterrupt

    def fill(text: str) -> None:
        with folder_atomically(tmp_path) as place:
            for name in ("a.txt", "b.txt", "c.txt"):
                (place / name).write_text(text)

    with monkeypatch.context() as patch:
        patch.setattr(os, "replace", interrupted)
        with pytest.raises(KeyboardInterrupt):
            fill("first")
    assert list(tmp_path.iterdir()) == []
    fill("second")
    with pytest.raises(ConfigError, match="is not an empty folder"):
        fill("third")  # as a second process would
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == dict.fromkeys(
        ("a.txt", "b.txt", "c.txt"), "second"
    )


def test_folders_being_written_are_no_leftovers_to_remove(tmp_path: Path) -> None:
    """A run is extended while its index is written in its folder."""
    with folder_atomically(tmp_path / "index") as place:
        (place / "a.txt").touch()
        remove_leftovers(tmp_path)
        (place / "b.txt").touch()
    assert {path.name for path in (tmp_path / "index").iterdir()} == {"a.txt", "b.txt"}


def test_a_folder_that_may_not_be_written_to_is_refused_at_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "access", lambda path, mode: Path(path) != tmp_path)  # root may write everywhere
    with pytest.raises(ConfigError, match="may not be written to: choose another folder"):
        require_new_folder(tmp_path / "of" / "models")


@pytest.mark.parametrize("name", ["a" * 255, "ä" * 127])
def test_the_longest_names_are_written(tmp_path: Path, name: str) -> None:
    write_text_atomically(tmp_path / name, "text")
    with folder_atomically(tmp_path / "folders" / name) as place:
        (place / "a.txt").touch()
    assert {path.name for path in tmp_path.rglob("*")} == {name, "folders", "a.txt"}


def test_what_a_killed_writer_left_is_removed_and_no_other_file(tmp_path: Path) -> None:
    left: list[Path] = []
    write_atomically(tmp_path / "a.txt", lambda temporary: left.append(temporary))
    left[0].write_text("half")
    (tmp_path / ".tmpx8Jq0a").write_text("safetensors writes to such a file first")
    (tmp_path / ".hidden").write_text("someone's")
    remove_leftovers(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.txt", ".hidden"}


@pytest.mark.parametrize("umask", [0o077, 0o022, 0o002])
def test_permissions_are_those_of_the_umask(tmp_path: Path, umask: int) -> None:
    before = os.umask(umask)
    try:
        write_text_atomically(tmp_path / "a.txt", "text")
    finally:
        os.umask(before)
    assert (tmp_path / "a.txt").stat().st_mode & 0o777 == 0o666 & ~umask


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="there are no pipes here")
def test_a_pipe_is_written_to_and_a_link_stays(tmp_path: Path) -> None:
    """/dev/null and /dev/stdout are devices or links; as root, a file could take their place."""
    os.mkfifo(pipe := tmp_path / "pipe")
    reader = os.open(pipe, os.O_RDONLY | os.O_NONBLOCK)
    write_bytes_atomically(pipe, b"text")
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    assert pipe.is_fifo()
    reader, writer = os.pipe()
    write_bytes_atomically(Path(f"/dev/fd/{writer}"), b"text")  # a link to a name that is no path
    assert os.read(reader, 9) == b"text"
    os.close(reader)
    os.close(writer)
    (target := tmp_path / "target").write_bytes(b"old")
    (link := tmp_path / "link").symlink_to(target)
    write_bytes_atomically(link, b"new")
    assert link.is_symlink()
    assert target.read_bytes() == b"new"


def test_names_are_flushed_after_the_contents(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a power cut could leave the old name of a new file, or a new name of an empty one."""
    done: list[str] = []
    fsync, replace = os.fsync, os.replace

    def flush(handle: int) -> None:
        assert os.path.isdir(f"/proc/self/fd/{handle}") or os.write(handle, b"") == 0  # it may be written to
        done.append("flush folder" if os.path.isdir(f"/proc/self/fd/{handle}") else "flush file")
        fsync(handle)

    def rename(old: Path, new: Path) -> None:
        done.append("rename")
        replace(old, new)

    monkeypatch.setattr(os, "fsync", flush)
    monkeypatch.setattr(os, "replace", rename)
    write_text_atomically(tmp_path / "a.txt", "text")
    assert done == ["flush file", "rename", "flush folder"]


@pytest.mark.parametrize("text", ["", "[]", "1", "null", "{", "[" * 10**5, "\udcff"])
def test_json_that_is_no_mapping_names_its_file(tmp_path: Path, text: str) -> None:
    path = tmp_path / "facts.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(ConfigError, match=r"facts\.json cannot be read"):
        read_json(path)


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "facts.json")
    with pytest.raises(ConfigError, match=r"facts\.json cannot be read \(not a regular file but a pipe"):
        read_json(tmp_path / "facts.json")
