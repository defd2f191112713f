"""The `ssole` command: parse, call, print.

`dispatch.py` finds the command and turns errors into exit codes; `common.py` holds what commands share; every other
file is one command. To add a command, write its file and give it a line in `dispatch.COMMANDS`.
A command is a function from its arguments to an exit code; its docstring is its help, and the first line of that is
also shown by `ssole --help`. Nothing imports this package. Texts may change freely; exit codes and options may not.
"""

from __future__ import annotations

from ssole.cli.dispatch import COMMANDS, main

__all__ = ["COMMANDS", "main"]
