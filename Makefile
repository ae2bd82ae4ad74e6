# `make demo` and `make test` do everything on a fresh machine; the rest is for development.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
DEMO ?= demo
BENCH ?= bench
DATA ?= ../shared/data
WEIGHTS ?= ../shared/weights
AXE := axe-core@4.14.1
BENCHMARKS := naive overhead scaling per_scan memory peers many_workers compiled

.DEFAULT_GOAL := help
.PHONY: help demo test slow browser notebooks docs faults cluster bench bench-smoke container \
	container-test check format clean

help:
	@echo "make demo    set up, write a phantom cohort, fuse it, say where the results are"
	@echo "make test    set up and run the tests"
	@echo "make slow    the tests that take longest: clusters, processes killed, memory run out of"
	@echo "make browser  the reports in headless Chromium (Debian: chromium chromium-driver npm)"
	@echo "make notebooks  run every notebook"
	@echo "make docs    build the pages (site/), run every command and snippet of them"
	@echo "make faults  the slow tests of all that goes wrong; writes workflows/faults.md"
	@echo "make cluster real clusters: shared ones, SLURM, hosts in namespaces; as root, installs SLURM"
	@echo "make bench   how fast, beside what: an hour on a quiet machine; writes $(BENCH)/results.md"
	@echo "make container  an image with buildah, podman or docker (deploy/containers.md)"
	@echo "make check   ruff and mypy --strict"
	@echo "make format  put the code in house style"
	@echo "make clean   remove .venv and $(DEMO)"

demo: $(VENV)/.installed
	$(BIN)/fusionflow demo $(DEMO)

test: $(VENV)/.installed-test
	$(BIN)/python -m pytest

slow: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m slow tests

browser: $(VENV)/.installed-docs $(VENV)/axe.min.js
	FUSIONFLOW_AXE=$(VENV)/axe.min.js $(BIN)/python -m pytest -m browser tests/browser

notebooks: $(VENV)/.installed-docs
	$(BIN)/python -m pytest -m notebooks --timeout 600 tests/notebooks

docs: $(VENV)/.installed-docs
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict --config-file workflows/docs/mkdocs.yml
	$(BIN)/python -m pytest -m docs tests/docs

faults: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m faults tests

cluster: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m cluster tests

bench: $(VENV)/.installed
	for name in $(BENCHMARKS); do \
	  $(BIN)/python workflows/benchmarks/$$name.py \
	    --out $(BENCH) --data $(DATA) --weights $(WEIGHTS) $(BENCHFLAGS) || exit 1; \
	done
	$(BIN)/python workflows/benchmarks/page.py $(BENCH)

bench-smoke: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m bench tests

container:
	deploy/build-container.sh

container-test: $(VENV)/.installed-test
	$(BIN)/python -m pytest -m container tests/container

check: $(VENV)/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

format: $(VENV)/.installed-dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

clean:
	rm -rf $(VENV) $(DEMO) $(BENCH)

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { \
	  echo "No $(PYTHON) here. On Debian or Ubuntu: apt-get install python3 python3-venv"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "fusionflow needs Python 3.11 or later; this is $$($(PYTHON) --version)."; \
	  echo "Name another one: make PYTHON=python3.12 ..."; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
	  echo "$(PYTHON) cannot make virtual environments. On Debian or Ubuntu: apt-get install python3-venv"; exit 1; }
	$(PYTHON) -m venv $(VENV)

# The stamps are renewed when what is installed would be another.
$(VENV)/.installed: pyproject.toml constraints.txt | $(VENV)/bin/python
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable .
	@touch $@

$(VENV)/.installed-test: $(VENV)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

$(VENV)/.installed-docs: $(VENV)/.installed-test
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs,notebook]'
	@touch $@

$(VENV)/axe.min.js:
	cd $(VENV) && npm pack --silent $(AXE) && tar xzf axe-core-*.tgz package/axe.min.js
	mv $(VENV)/package/axe.min.js $@ && rm -r $(VENV)/package $(VENV)/axe-core-*.tgz
