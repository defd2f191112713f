"""Entry point of the `ssole` command: help, version, choice of the command, errors and exit codes."""

from __future__ import annotations

import inspect
import io
import os
import shutil
import sys
import warnings
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from ssole import __version__, distributed
from ssole.cli.common import parse
from ssole.cli.compare import Compare
from ssole.cli.doctor import Doctor
from ssole.cli.embed import Embed
from ssole.cli.eval import Eval
from ssole.cli.export import Export
from ssole.cli.extend import Extend
from ssole.cli.index import Index
from ssole.cli.pretrain import pretrain
from ssole.cli.replay import Replay
from ssole.cli.report import Report
from ssole.cli.search import Search
from ssole.cli.select import Select
from ssole.cli.tune import Tune
from ssole.cli.views import Views
from ssole.config import PretrainConfig
from ssole.data.tiff import silence_tiff_libraries
from ssole.errors import did_you_mean, printable, without_secrets
from ssole.runtime import out_of_memory_reason, usable_cpus
from ssole.training.guardian import CollapseError

_SIGNAL = 128  # added to the number of a signal, it is the exit code after it
_MIN_COLUMNS = 40  # columns of a help page; in a terminal of one column, its layout would never end
Command = Callable[..., Any]

COMMANDS: dict[str, Command] = {
    "doctor": Doctor,
    "pretrain": pretrain,
    "extend": Extend,
    "compare": Compare,
    "tune": Tune,
    "eval": Eval,
    "report": Report,
    "embed": Embed,
    "index": Index,
    "search": Search,
    "select": Select,
    "export": Export,
    "views": Views,
    "replay": Replay,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. It exits with 0; 1 for a failed run; 2 for wrong input; 3 for a collapse; 128 + N after signal N."""
    _prepare_output()
    code = _main(list(sys.argv[1:] if argv is None else argv))
    if argv is None and code > _SIGNAL:  # Python would wait for threads that read images, as long as a disk is silent
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError):  # of a terminal that was closed
                stream.flush()
        os._exit(code)
    sys.exit(code)


def _prepare_output() -> None:
    """Set up output: enough columns, `?` for characters that it lacks, and silence of libraries that name no image."""
    if shutil.get_terminal_size().columns < _MIN_COLUMNS:
        os.environ["COLUMNS"] = str(_MIN_COLUMNS)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    silence_tiff_libraries()


def _main(argv: list[str]) -> int:
    command, launch = COMMANDS.get(argv[0]) if argv else None, distributed.launch()
    if command is None:
        return _without_command(argv)
    if command not in (pretrain, Extend, Eval, Embed) and launch.world_size > 1:
        if launch.rank:  # the first process does all the work, with the threads of those on its machine
            return 0
        os.environ["WORLD_SIZE"] = "1"
        # as many threads as all processes of this machine have together, at most one for each usable processor
        torch.set_num_threads(max(1, min(usable_cpus(), launch.local_world_size * torch.get_num_threads())))
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(command, argv[1:])


def _without_command(argv: list[str]) -> int:
    """Exit code of arguments that name no command. The first process prints the help, the version or an error."""
    first = argv[0] if argv else ""
    code = 0 if first in ("-h", "--help", "--version") else 2
    if distributed.launch().rank:
        return code
    if first == "--version":
        print(f"ssole {__version__}")
    elif first in ("", "-h", "--help"):
        print(_usage())
    else:
        print(f"error: no command {first!r}.{did_you_mean(first, COMMANDS)}\n\n{_usage()}", file=sys.stderr)
    return code


def _usage() -> str:
    summaries = {name: (inspect.getdoc(command) or "").partition("\n")[0] for name, command in COMMANDS.items()}
    width = max(map(len, COMMANDS))
    return "\n".join(
        [
            "usage: ssole COMMAND [OPTIONS]",
            "",
            *(f"  ssole {name:<{width}}  {summary}" for name, summary in summaries.items()),
            "",
            "ssole COMMAND --help explains a command and its options.",
            "To try it now: ssole pretrain, with no options, learns from the built-in digits-m images in minutes.",
        ]
    )


def _run(command: Command, argv: Sequence[str]) -> int:
    """Exit code of a command. Errors that a user can correct are printed in one line, without a traceback."""
    try:
        # training joins the processes itself, when it knows their timeout
        shares = command in (Eval, Embed) and not {"-h", "--help"} & set(argv)
        with distributed.processes(PretrainConfig.process_timeout) if shares else nullcontext():
            code: int = pretrain(argv) if command is pretrain else parse(command, argv)()
            return code
    except ValueError as error:  # ConfigError and DataError among them: their messages say what to do
        _print_error(error)
        return 2
    except BrokenPipeError:  # the program that reads the output has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return _SIGNAL + 13  # the exit code of a process that SIGPIPE ends
    except FloatingPointError as error:  # a loss that is not finite, in all processes
        if not distributed.launch().rank:
            _print_error(error)
        return 1
    except distributed.ElsewhereError:  # the process that failed says why
        return 1
    except (OSError, distributed.ProcessError) as error:  # such as a full disk
        _print_error(error)
        return 1
    except CollapseError as error:
        _print_error(error)
        return 3
    except (RuntimeError, MemoryError) as error:
        if not (reason := out_of_memory_reason(error)):
            raise
        _print_error(f"{reason}. Lower --batch-size, --views or --augment.crops.0.size")
        return 1
    except KeyboardInterrupt as error:
        if not distributed.launch().rank:
            print(f"\n{printable(str(error))}" if str(error) else "\ninterrupted", file=sys.stderr)
        return _SIGNAL + int(getattr(error, "signal_number", 2))


def _print_error(error: object) -> None:
    """Print an error, unless another process has printed the same: a wrong path is an error in all of them."""
    rank, text = distributed.launch().rank, printable(without_secrets(str(error)))
    if distributed.says_first(text):
        print(f"error: {f'process {rank}: ' if rank else ''}{text}", file=sys.stderr)


def _show_warning(message: Warning | str, category: type[Warning], filename: str, *_: Any, **__: Any) -> None:
    """Print a warning in one line, without the line of code that raised it.

    Those of Pillow are left out: they do not name their image, and an image that cannot be read has an error.
    """
    if "PIL" not in Path(filename).parts and not distributed.launch().rank:
        print(f"warning: {printable(without_secrets(str(message)))}", file=sys.stderr)
