# make demo    install, train on digits-m, table and report       make lint    ruff and mypy
# make test    install, run the tests (test-slow: the slow ones)   make docs    build the documentation site
# make setup   install everything for work on ssole               make clean   remove caches and builds
#
# PYTHON names the interpreter that .venv is made with: make demo PYTHON=python3.12

PYTHON ?= python3
VENV := .venv
DEMO := runs/demo
export PYTHON

.DEFAULT_GOAL := help
.PHONY: help install setup demo test test-slow lint format docs wheel clean distclean

help:
	@echo "make demo     train on digits-m (3 to 9 minutes on 2 cores), print the table, write a report; FRESH=1 trains again"
	@echo "make setup    install everything for work on ssole, and check each commit with pre-commit"
	@echo "make test     run the tests but the slow ones; 'make test-slow' runs those: killed processes, compiled networks, the docs"
	@echo "make lint     ruff and mypy --strict; 'make format' rewrites"
	@echo "make docs     build the documentation site into build/docs"
	@echo "make wheel    build the package into dist/"
	@echo "make clean    remove caches and builds; 'make distclean' also $(VENV). Runs are never removed"

install:
	@scripts/install.sh report

setup:
	@scripts/install.sh dev
	@if git rev-parse --git-dir > /dev/null 2>&1; then $(VENV)/bin/pre-commit install; fi

# Safe to run twice: a finished run is only evaluated again, an interrupted one is resumed.
demo: install
	@if [ -n "$(FRESH)" ]; then rm -rf "$(DEMO)"; fi
	@if [ -f "$(DEMO)/backbone.safetensors" ]; then \
		echo "$(DEMO) is trained already (make demo FRESH=1 trains it again)"; \
	elif [ -n "$$(ls -A "$(DEMO)/checkpoints" 2> /dev/null)" ]; then \
		echo "$(DEMO) was interrupted: resuming it"; \
		$(VENV)/bin/ssole pretrain --resume "$(DEMO)"; \
	else \
		rm -rf "$(DEMO)"; \
		$(VENV)/bin/ssole pretrain --out "$(DEMO)"; \
	fi
	@$(VENV)/bin/ssole eval "$(DEMO)"
	@$(VENV)/bin/ssole report "$(DEMO)"

# Two processes, each with one file of tests at a time: many tests use one thread, or wait for a process they started.
test:
	@scripts/install.sh test
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m "not slow"

test-slow:
	@scripts/install.sh test
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile -m slow

lint:
	@scripts/install.sh dev
	$(VENV)/bin/ruff check .
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/mypy

format:
	@scripts/install.sh dev
	$(VENV)/bin/ruff check --fix .
	$(VENV)/bin/ruff format .

# Strict: a link or reference that leads nowhere is an error. Nothing is downloaded.
docs:
	@scripts/install.sh docs
	$(VENV)/bin/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet docs build/docs
	@echo "open build/docs/index.html"

wheel:
	@scripts/install.sh dev
	$(VENV)/bin/python -m build --outdir dist

clean:
	rm -rf build dist .mypy_cache .pytest_cache .ruff_cache .hypothesis
	find src tests benchmarks -type d -name __pycache__ -prune -exec rm -rf {} +

distclean: clean
	rm -rf $(VENV)
