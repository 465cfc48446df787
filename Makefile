# Every target does its own set-up in .venv; the versions are those of constraints.txt.
PYTHON ?= python3
SWEEP_ARGS ?=
BENCH_ARGS ?=
CLAIMS_ARGS ?=

VENV := .venv
STAMP := $(VENV)/.installed
PIP := $(VENV)/bin/python -m pip -qq --disable-pip-version-check

.PHONY: sweep test check bench claims clean

sweep: $(STAMP)
	@$(VENV)/bin/tunebatch sweep $(SWEEP_ARGS)

# Two processes; the tests of a file stay together, because they share compiled kernels and loaded models.
test: $(STAMP)
	@$(VENV)/bin/python -m pytest -n 2 --dist loadfile

check: $(STAMP)
	@$(VENV)/bin/ruff format --check .
	@$(VENV)/bin/ruff check .
	@$(VENV)/bin/mypy

bench: $(STAMP)
	@$(VENV)/bin/python benchmarks/planner.py
	@$(VENV)/bin/python benchmarks/prefix_lookup.py
	@$(VENV)/bin/python benchmarks/ngram_lookup.py
	@$(VENV)/bin/python benchmarks/draft_step.py
	@$(VENV)/bin/python benchmarks/engine_cpu.py $(BENCH_ARGS)

# Nothing else may run beside it.
claims: $(STAMP)
	@$(VENV)/bin/python benchmarks/claims.py $(CLAIMS_ARGS)

# The stamp goes first and comes last, so that an installation that broke off is begun again. torch is
# installed alone, before anything that would choose another build of it.
$(STAMP): pyproject.toml constraints.txt
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "TuneBatch needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>/dev/null || echo missing)." \
	    "Name another one: make PYTHON=python3.12 $(MAKECMDGOALS)" >&2; exit 1; }
	@rm -f $@
	@$(VENV)/bin/python -c '' 2>/dev/null || rm -rf $(VENV)
	@echo "installing into $(VENV): once, a few minutes, most of them for torch"
	@$(PYTHON) -m venv $(VENV)
	@$(PIP) install --constraint constraints.txt torch
	@$(PIP) install --constraint constraints.txt --editable ".[dev]"
	@touch $@

clean:
	rm -rf $(VENV)
