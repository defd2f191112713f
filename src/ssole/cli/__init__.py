"""The `ssole` command: parse, call, print.

`dispatch.py` finds the command and turns errors into exit codes; `common.py` holds what commands share; every other
file is one command: a dataclass whose fields are its options, and whose call does the work and returns an exit code.
Its docstring is its help, and `ssole --help` shows the first line. `pretrain`, whose options depend on the recipe, is a
function that parses them itself. To add a command, write its file and give it a line in `dispatch.COMMANDS`.
Nothing imports this package. Texts may change freely; exit codes and options may not.
"""

from __future__ import annotations

from ssole.cli.dispatch import COMMANDS, main

__all__ = ["COMMANDS", "main"]
