"""Help, version, unknown commands, errors and exit codes, for all commands."""

from __future__ import annotations

import contextlib
import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from commands import TINY, Command

import ranks
import ssole
import tiny
from ssole import distributed
from ssole.cli import COMMANDS
from ssole.training.run import Run


def test_without_a_command_the_usage_is_shown(command: Command) -> None:
    for arguments, code in (((), 2), (("--help",), 0), (("-h",), 0)):
        outcome = command(*arguments)
        assert outcome.code == code
        for name in COMMANDS:
            assert f"ssole {name}" in outcome.out


def test_version(command: Command) -> None:
    assert command("--version").out == f"ssole {ssole.__version__}\n"


@pytest.mark.parametrize(("typed", "meant"), [("evl", "eval"), ("pretain", "pretrain"), ("embeddings", "embed")])
def test_a_mistyped_command(command: Command, typed: str, meant: str) -> None:
    outcome = command(typed)
    assert outcome.code == 2
    assert f"no command '{typed}'. Did you mean '{meant}'?" in outcome.err


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_begins_with_its_summary(command: Command, name: str) -> None:
    summary = (COMMANDS[name].__doc__ or "").partition("\n")[0]
    assert 0 < len(summary) <= 100
    assert re.search(rf"^  ssole {name} +{re.escape(summary)}$", command("--help").out, flags=re.MULTILINE)
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert outcome.out.startswith(f"usage: ssole {name} ")
    assert f"\n\n{summary}\n" in outcome.out.replace(" \n", "\n")


@pytest.mark.parametrize("name", ["eval", "embed"])
def test_help_of_commands_on_a_run_names_it_as_an_argument(command: Command, name: str) -> None:
    outcome = command(name, "--help")
    assert outcome.code == 0
    assert re.search(rf"^usage: ssole {name} .*\bRUN\b", outcome.out)
    assert "--run" not in outcome.out


def test_divergence_names_the_step(command: Command) -> None:
    outcome = command(*TINY, "--optim.lr", "1e30")
    assert outcome.code == 1
    assert re.search(r"^error: step \d+: .*lower optim\.lr", outcome.err, flags=re.MULTILINE)
    assert not Run(Path("runs/tiny")).finished


def test_a_collapse_has_an_exit_code_of_its_own(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("ssole.training.guardian.LEAST_STEPS", 2)
    monkeypatch.setattr("ssole.training.monitor.effective_rank", lambda z: torch.tensor(1.0))
    outcome = command(*TINY)
    assert outcome.code == 3
    assert re.search(r"^error: step 3: the embeddings have collapsed", outcome.err, flags=re.MULTILINE)


def test_a_full_disk_is_an_error_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("ssole.training.saving.write_checkpoint", full)
    outcome = command(*TINY)
    assert outcome.code == 1
    assert "error: [Errno 28] No space left on device" in outcome.err


def test_lack_of_memory_is_an_error_line(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 GiB. GPU 0 has ...")

    monkeypatch.setattr("ssole.training.embedder.Embedder.embed", full)
    outcome = command(*TINY)
    assert outcome.code == 1
    assert "error: CUDA out of memory. Lower --batch-size" in outcome.err


ON_CPU = (
    "[enforce fail at alloc_cpu.cpp:114] err == 0. DefaultCPUAllocator: can't allocate memory: you tried to allocate 99"
)


@pytest.mark.parametrize(
    ("error", "told"),
    [
        (RuntimeError(ON_CPU), "can't allocate memory: you tried to allocate 99"),
        (MemoryError(), "not enough memory"),
        (RuntimeError("can't start new thread"), "can't start new thread"),
    ],
)
def test_lack_of_memory_without_a_gpu(
    command: Command, monkeypatch: pytest.MonkeyPatch, error: Exception, told: str
) -> None:
    def full(*_: object) -> None:
        raise error

    monkeypatch.setattr("ssole.training.embedder.Embedder.embed", full)
    outcome = command(*TINY)
    assert outcome.code == 1
    assert f"error: {told}. Lower --batch-size" in outcome.err


ESCAPE = "\x1b]0;a title\x07\x1b[31m"


@pytest.mark.filterwarnings("default")
def test_names_of_files_cannot_steer_the_terminal(command: Command) -> None:
    Path(f"photos/cat/{ESCAPE}.png").write_bytes(b"no image")
    outcome = command(*TINY, "--out", f"runs/{ESCAPE}")
    assert outcome.code == 0, outcome.err
    assert r"\x1b]0;a title\x07\x1b[31m.png" in outcome.out
    assert "\x1b" not in outcome.out + outcome.err
    for arguments in (("eval",), ("index",), ("pretrain", "--resume")):  # runs of strangers have their names, too
        outcome = command(*arguments, f"runs/{ESCAPE}")
        assert outcome.code == 0, outcome.err
        assert r"runs/\x1b]0;a title\x07\x1b[31m" in outcome.out.replace("\n", "")
        assert "\x1b" not in outcome.out + outcome.err
    for name in (f"photos/{ESCAPE}.csv", f"photos/{ESCAPE}.tar", f"photos/{ESCAPE}"):
        outcome = command("pretrain", "--recipe", "tiny.yaml", "--data", name)
        assert outcome.code == 2
    Path("photos/list.csv").write_text(f"{ESCAPE},label\n1,2\n")
    outcome = command("pretrain", "--recipe", "tiny.yaml", "--data", "photos/list.csv")
    assert outcome.code == 2
    for path in Path("photos").rglob("*.png"):
        path.write_bytes(b"no image")
    for arguments in (TINY, ("doctor", "photos", "--no-estimate")):
        outcome = command(*arguments)
        assert r"\x1b]0;a title" in outcome.out + outcome.err
        assert "\x1b" not in outcome.out + outcome.err
        assert "\x07" not in outcome.out + outcome.err


@pytest.mark.parametrize("columns", ["1", "10"])
def test_help_in_a_narrow_terminal_ends(command: Command, monkeypatch: pytest.MonkeyPatch, columns: str) -> None:
    def too_long(*_: object) -> None:
        raise TimeoutError("the layout does not end")

    before = signal.signal(signal.SIGALRM, too_long)
    signal.alarm(100)
    try:
        for name in ("pretrain", "eval"):
            monkeypatch.setenv("COLUMNS", columns)  # which a command raises to what it needs
            outcome = command(name, "--help")
            assert (outcome.code, outcome.out[:12]) == (0, "usage: ssole")
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_an_output_without_all_characters_does_not_end_a_command(
    trained: Command, monkeypatch: pytest.MonkeyPatch, encoding: str
) -> None:
    Path("labeled/cat").rename("labeled/ネコ")
    for arguments in (
        ["doctor", "labeled", "--no-estimate"],
        ["eval", "run", "--data", "labeled", "--protocol", "knn"],
    ):
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding) for _ in range(2))
        with monkeypatch.context() as patch:
            patch.setattr(sys, "stdout", out)
            patch.setattr(sys, "stderr", err)
            assert tiny.main(*arguments) in {0, 1}
        for stream in (out, err):
            stream.seek(0)
            said = stream.read()
            assert "Traceback" not in said
            assert "can't encode" not in said


@pytest.mark.slow
def test_damaged_tiffs_print_one_line_and_not_one_for_each_defect(trained: Command) -> None:
    from PIL import Image

    out = io.BytesIO()
    Image.fromarray(tiny.images(1)[0]).save(out, "TIFF", compression="tiff_deflate")
    for number in range(20):
        data = bytearray(out.getvalue())
        data[20 + number] ^= 255
        data[-30 - 5 * number] ^= 255
        Path(f"labeled/cat/{number}.tif").write_bytes(data)
    arguments = ["pretrain", "--recipe", "tiny.yaml", "--data", "labeled", "--steps", "2", "--max-unreadable", "0.5"]
    done = subprocess.run([sys.executable, "-m", "ssole", *arguments], capture_output=True, text=True, timeout=240)
    assert done.returncode == 0, done.stderr
    assert "unreadable images were left out" in done.stdout
    for line in done.stderr.splitlines():
        assert re.match(r"runs/tiny|step |compiling", line), done.stderr


@pytest.mark.filterwarnings("default")
def test_a_warning_is_one_line(trained: Command) -> None:
    Path("labeled/cat/zzz.png").write_bytes(b"")
    outcome = trained("embed", "run")
    assert outcome.code == 0, outcome.err
    (line,) = [line for line in outcome.err.splitlines() if "warning" in line]
    assert line.startswith("warning: 1 of 61 images cannot be read")
    assert ".py" not in line


def say(folder: Path) -> None:
    """Wrong input and help in one of many processes, and what it prints."""
    os.chdir(folder)
    with contextlib.ExitStack() as stack:
        file = stack.enter_context((folder / f"{os.environ['RANK']}.txt").open("w"))
        stack.enter_context(contextlib.redirect_stderr(file))
        stack.enter_context(contextlib.redirect_stdout(file))
        assert tiny.main("eval", "nothing") == 2  # an error within the group of processes
        assert tiny.main("pretrain", "--resume", "no-run") == 2  # and one before they meet
        assert tiny.main("pretrain", "--nonsense") == 2
        assert tiny.main("pretend") == 2
        assert tiny.main("embed", "--help") == 0
        assert tiny.main("--version") == 0
        with distributed.processes(60):  # the first one serves the store, which the other still needs
            distributed.collect(None)


@pytest.mark.slow
def test_of_many_processes_one_says_what_all_have_to_say(tmp_path: Path) -> None:
    ranks.run(2, say, tmp_path)
    said = "".join((tmp_path / f"{rank}.txt").read_text() for rank in range(2))
    once = ("there is no nothing", "there is no no-run", "options: --nonsense", "Did you mean", "usage: ssole embed")
    for words in once:
        assert said.count(words) == 1, said
    assert said.count(f"ssole {ssole.__version__}\n") == 1
