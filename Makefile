# make demo   render videos, extract real features, train and compare: the whole path (minutes for the installation, then about three on 2 cores)
# make test   the test suite, style, types and import rules
# Both make .venv and install into it first; a second call reuses it.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
# Installing compiles TV-L1, so that a change of it installs again.
BUILT := pyproject.toml hatch_build.py $(addprefix extract/aqa_extract/flow/,tvl1.c network.py build.py)

# One process a core, each with whole files: their fixtures are dear.
PYTEST := $(BIN)/python -m pytest -q -n auto --maxprocesses 8 --dist loadfile --no-loadscope-reorder

.PHONY: demo test test-all test-versions test-slurm lint clean

demo: $(VENV)/.installed
	$(BIN)/aqa demo --out demo

test: lint
	$(PYTEST)

# Everything, with the tests that take minutes.
test-all: lint
	$(PYTEST) -m ''

# The lowest and the newest versions that pyproject.toml allows, on the oldest and the newest Python that is here.
test-versions:
	.ci/versions

# An array on a SLURM of our own, with tasks cancelled and pre-empted; installs Debian's SLURM where it is not there.
test-slurm: $(VENV)/.installed-dev
	command -v slurmctld >/dev/null || { apt-get update -qq && apt-get install -y -qq --no-install-recommends slurm-wlm munge; } || \
		echo "SLURM is not here, and apt-get cannot install it"
	$(BIN)/python -m pytest -q -m '' tests/pipelines/test_slurm.py tests/pipelines/test_slurm_train.py

lint: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

$(BIN)/python:
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "AQA needs Python 3.11 or newer, this is " + sys.version.split()[0] + ": set PYTHON=python3.11 (or newer)")'
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.installed: $(BUILT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable .
	@touch $@

$(VENV)/.installed-dev: $(BUILT) | $(BIN)/python
	$(BIN)/python -m pip install --quiet --editable '.[dev]'
	@touch $@ $(VENV)/.installed

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest demo
