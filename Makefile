# Each target works alone on a fresh machine and is fast when nothing changed.
PYTHON ?= python3
WORKERS ?= 3
SLOW_WORKERS ?= 3
BIN := .venv/bin
PIP := $(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt
# On Python's path, so that a clone called forescale does not hide the package from its own parent.
EDITABLE := --config-settings editable_mode=compat --editable

# Tests wait for ranks more than they compute: one worker more than there are processors.
# The processes that tests start keep compiled modules, whatever the environment says.
PARALLEL := OMP_NUM_THREADS=1 PYTHONDONTWRITEBYTECODE= $(BIN)/pytest \
  --dist loadgroup --no-loadscope-reorder

.PHONY: help setup demo docs peers test test-slow test-gpu bench check format clean

help:
	@echo "make setup   a virtual environment in .venv with everything to train and test"
	@echo "make demo    train a forecaster of electricity demand on two ranks (minutes)"
	@echo "make test    the tests"
	@echo "make test-slow  those that take minutes"
	@echo "make test-gpu  what needs a CUDA device"
	@echo "make peers   an environment in .peers with libraries whose adapters are tested"
	@echo "make docs    the documentation as a site, in site/"
	@echo "make bench   measure beside torch, Hugging Face and DeepSpeed on this CPU"
	@echo "make check   lint, types and the direction of imports"

setup: .venv/.installed

.venv/.created:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "Forescale needs Python 3.11 or newer; try: make setup PYTHON=python3.12" >&2; exit 2; }
	@$(PYTHON) -m venv .venv
	@touch $@

.venv/.installed: .venv/.created pyproject.toml constraints.txt
	@echo "installing into .venv (a minute or two)"
	@$(PIP) $(EDITABLE) '.[test]'
	@touch $@

.venv/.checked: .venv/.installed
	@$(PIP) $(EDITABLE) '.[dev]'
	@touch $@

demo: setup
	@$(BIN)/forescale train configs/demo.yaml --ranks 2
	@$(BIN)/forescale evaluate runs/demo --report runs/demo/report.html --force

docs: .docs/.installed
	@NO_MKDOCS_2_WARNING=1 .docs/bin/mkdocs build --quiet --site-dir site

.docs/.installed: docs/requirements.txt
	@$(PYTHON) -m venv .docs
	@.docs/bin/pip install --quiet --disable-pip-version-check --requirement docs/requirements.txt
	@touch $@

# They want an older pandas than ours: it stands before ours on this Python's path.
peers: .peers/.installed
.peers/.installed: .venv/.installed tests/peers.txt
	@$(PYTHON) -m venv .peers
	@.peers/bin/pip install --quiet --disable-pip-version-check --requirement tests/peers.txt
	@$(BIN)/python -c "import sysconfig; print(sysconfig.get_path('purelib'))" \
	  > "$$(.peers/bin/python -c "import sysconfig; print(sysconfig.get_path('purelib'))")/ours.pth"
	@touch $@

test: setup
	@$(PARALLEL) --numprocesses $(WORKERS) -m "not slow and not gpu"

test-slow: setup
	@$(PARALLEL) --numprocesses $(SLOW_WORKERS) -m "slow and not gpu"

test-gpu: setup
	@OMP_NUM_THREADS=2 $(BIN)/pytest -m gpu --numprocesses 8 --dist loadgroup

bench: setup
	@$(PIP) $(EDITABLE) '.[bench]'
	@$(BIN)/python -m benchmarks

check: .venv/.checked
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/lint-imports --no-logo

format: .venv/.checked
	@$(BIN)/ruff check --fix .
	@$(BIN)/ruff format .

clean:
	rm -rf .venv .peers .docs site *.egg-info .mypy_cache .ruff_cache .pytest_cache .import_linter_cache
