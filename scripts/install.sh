#!/bin/sh
# Make .venv and install ssole into it, editable. Run again, it does nothing until something has changed;
# an environment that is broken, half-made or has moved is made anew.
#
#   scripts/install.sh [EXTRAS]      for example: scripts/install.sh test
#   PYTHON=python3.12 scripts/install.sh
set -eu

root=$(cd "$(dirname "$0")/.." && pwd -P)
cd "$root"
python=${PYTHON:-python3}
extras=${1:-}
venv=.venv
stamp=$venv/.installed${extras:+-$extras}

fail() {
    printf '\nssole: %s\n' "$1" >&2
    exit 1
}

# What is installed depends on these: the dependencies, and where the checkout and the environment lie.
wanted="$root $(cksum < pyproject.toml)"

if [ -f "$stamp" ] && [ "$(cat "$stamp")" = "$wanted" ] \
    && "$venv/bin/python" -c 'from importlib.metadata import version; version("ssole")' > /dev/null 2>&1; then
    exit 0
fi

command -v "$python" > /dev/null 2>&1 || fail "'$python' was not found. Python 3.10 or newer is needed. On Debian or Ubuntu:
    sudo apt-get update && sudo apt-get install -y python3 python3-venv
To use another interpreter, name it: make demo PYTHON=/path/to/python3"

version=$("$python" -c 'import sys; print("%d.%d" % sys.version_info[:2])') || fail "'$python' does not run."

"$python" -c 'import sys; sys.exit(sys.version_info < (3, 10))' \
    || fail "'$python' is Python $version, but 3.10 or newer is needed. If another one is installed, name it:
    make demo PYTHON=python3.11"

"$python" -c 'import ensurepip, venv' > /dev/null 2>&1 \
    || fail "Python $version has no venv module, which Debian and Ubuntu package apart:
    sudo apt-get update && sudo apt-get install -y python$version-venv"

# A stamp says that everything is there, which does not hold while an installation is under way.
rm -f "$stamp"

home=$("$venv/bin/python" -c 'import sys; print(sys.prefix)' 2> /dev/null || true)
if [ "$home" != "$root/$venv" ] || ! "$venv/bin/python" -m pip --version > /dev/null 2>&1; then
    echo "ssole: making $venv with Python $version"
    "$python" -m venv --clear "$venv" || fail "'$python -m venv $venv' failed; its message is above."
fi

echo "ssole: installing into $venv (the first time this downloads PyTorch, which takes a few minutes)"
# Modules are compiled when they are imported first: most of PyTorch never is, and compiling all takes minutes.
"$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-compile --editable ".${extras:+[$extras]}" \
    || fail "the installation failed; pip's message is above. Run the same command again to go on."
printf '%s' "$wanted" > "$stamp"
