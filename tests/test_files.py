"""A file is there whole, or as it was."""

from __future__ import annotations

from pathlib import Path

import pytest

from ssole.files import remove_leftovers, write_atomically, write_bytes_atomically, write_text_atomically


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


def test_what_a_killed_writer_left_is_removed_and_no_other_file(tmp_path: Path) -> None:
    left: list[Path] = []
    write_atomically(tmp_path / "a.txt", lambda temporary: left.append(temporary))
    left[0].write_text("half")
    (tmp_path / ".hidden").write_text("someone's")
    remove_leftovers(tmp_path)
    assert {entry.name for entry in tmp_path.iterdir()} == {"a.txt", ".hidden"}
