"""Entry point of the `ssole` command: help, version, choice of the command, errors and exit codes."""

from __future__ import annotations

import difflib
import inspect
import os
import sys
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import torch

from ssole import __version__
from ssole.cli.compare import compare
from ssole.cli.doctor import doctor
from ssole.cli.embed import embed
from ssole.cli.eval import evaluate
from ssole.cli.export import export
from ssole.cli.pretrain import pretrain
from ssole.cli.report import report
from ssole.cli.views import views

Command = Callable[[Sequence[str]], int]

COMMANDS: dict[str, Command] = {
    "doctor": doctor,
    "pretrain": pretrain,
    "compare": compare,
    "eval": evaluate,
    "report": report,
    "embed": embed,
    "export": export,
    "views": views,
}


def main(argv: Sequence[str] | None = None) -> None:
    """Entry point. It exits with 0, or 1 for a failed run, 2 for wrong input, 128 + N after signal N."""
    sys.exit(_main(list(sys.argv[1:] if argv is None else argv)))


def _main(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(_usage())
        return 0 if argv else 2
    if argv[0] == "--version":
        print(f"ssole {__version__}")
        return 0
    command = COMMANDS.get(argv[0])
    if command is None:
        close = difflib.get_close_matches(argv[0], list(COMMANDS), n=1)
        hint = f", did you mean {close[0]!r}?" if close else ""
        print(f"error: no command {argv[0]!r}{hint}\n\n{_usage()}", file=sys.stderr)
        return 2
    with warnings.catch_warnings():
        warnings.showwarning = _show_warning
        return _run(command, argv[1:])


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
        return command(argv)
    except ValueError as error:  # ConfigError and DataError among them: their messages say what to do
        print(f"error: {error}", file=sys.stderr)
        return 2
    except BrokenPipeError:  # the program that reads the output has ended, such as `head`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 128 + 13  # the exit code of a process that SIGPIPE ends
    except (FloatingPointError, OSError) as error:  # a loss that is not finite; a full disk
        print(f"error: {error}", file=sys.stderr)
        return 1
    except torch.OutOfMemoryError as error:
        reason = str(error).split(". ")[0]
        print(f"error: {reason}. Lower --batch-size, --views or --augment.crops.0.size", file=sys.stderr)
        return 1
    except KeyboardInterrupt as error:
        print(f"\n{error}" if str(error) else "\ninterrupted", file=sys.stderr)
        return 128 + int(getattr(error, "signal_number", 2))


def _show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """Print a warning in one line, without the line of code that raised it."""
    print(f"warning: {message}", file=sys.stderr)
