#!/bin/sh
# Tests with the lowest versions of all dependencies that pyproject.toml allows, in an environment of its own.
#
#   scripts/lowest.sh                 all tests
#   scripts/lowest.sh tests/data -x   some of them, with pytest's options
#
# PYTHON names the interpreter, as in scripts/install.sh; LOWEST the folder of the environment (build/lowest).
set -eu

cd "$(dirname "$0")/.."
venv=${LOWEST:-build/lowest}
"${PYTHON:-python3}" -m venv "$venv"
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check uv
"$venv/bin/uv" pip install --quiet --python "$venv/bin/python" --resolution lowest-direct --editable ".[test]"
exec "$venv/bin/python" -m pytest -W "ignore::UserWarning" "$@"
