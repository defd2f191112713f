"""`python -m ssole` is the `ssole` command."""

from __future__ import annotations

from ssole.cli import main

if __name__ == "__main__":
    main()
