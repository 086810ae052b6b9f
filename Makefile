# All commands for users and contributors. `make help` lists them.
#
#   make demo                    the whole workflow on the packaged sequences and models
#   make test PYTHON=python3.12  with another interpreter
#   make test TEST_FLAGS="-n 0"  all tests in one process
#   make bench BENCH_FLAGS=--full   all sizes of ESM-2; --quick checks that everything runs
#   make demo TORCH_FLAGS="--index-url https://download.pytorch.org/whl/cpu"   a smaller torch

PYTHON ?= python3
VENV ?= .venv
TORCH_FLAGS ?=
BENCH_FLAGS ?=
TEST_FLAGS ?=
CORES ?= all
UV := uv==0.13.9

SHELL := bash
BENCH := $(VENV)/bench
RUN := $(VENV)/bin/python -m
PIP := pip install --quiet --disable-pip-version-check
INSTALL := $(RUN) $(PIP)
PYTEST := $(RUN) pytest --durations 10
COMPILE = $(VENV)/lock/bin/uv pip compile --quiet --universal --python-version 3.11 \
	--custom-compile-command "make lock" --constraint requirements-torch.txt pyproject.toml

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: demo test test-long bench lint lock clean help

help:  ## show this list
	@grep -hE '^[a-z-]+:.*  ## ' $(MAKEFILE_LIST) | sed -E 's/^([a-z-]+):.*  ## /  make \1\t/' | expand -t 18

demo: $(VENV)/.workflow  ## embed the packaged proteins and fold the shortest with demo models, into results/
	@$(RUN) snakemake --cores $(CORES) --quiet rules progress host reason \
		--config "tasks=[embed, fold]" "fold={max_residues: 60, num_recycles: 0}"
	@$(RUN) workflow.scripts.show_results results

test: lint  ## lint, then run every test except the long ones
	@$(PYTEST) --numprocesses auto --dist loadfile --no-loadscope-reorder -m "not long" $(TEST_FLAGS)

test-long: $(VENV)/.test  ## run the long tests
	@$(PYTEST) -m long $(TEST_FLAGS)

bench: $(BENCH)/.peers  ## compare the speed with other implementations: a table, and build/benchmarks.json
	@$(BENCH)/bin/python -m tests.benchmarks $(BENCH_FLAGS)

lint: $(VENV)/.test  ## run ruff, mypy, snakefmt, snakemake --lint, mkdocs
	@$(RUN) ruff check .
	@$(RUN) ruff format --check .
	@$(RUN) mypy
	@$(RUN) snakefmt --check Snakefile workflow
	@$(RUN) snakemake --lint
	@$(RUN) mkdocs build --strict --config-file workflow/docs/mkdocs.yml

lock: requirements-torch.txt  ## resolve the dependencies again: locks and conda environment
	@rm -rf $(VENV)/lock && $(PYTHON) -m venv $(VENV)/lock && $(VENV)/lock/bin/python -m pip install -q $(UV)
	$(COMPILE) --extra workflow --generate-hashes --no-emit-package torch -o requirements.lock --upgrade
	$(COMPILE) --extra workflow --group test --generate-hashes --no-emit-package torch \
		--constraint requirements.lock -o requirements-test.lock --upgrade
	@printf '%s\n' '# Made by `make lock`: what a job needs, with the versions of requirements.lock.' \
		'channels:' '  - conda-forge' '  - nodefaults' 'dependencies:' '  - python =3.11' '  - pip' \
		'  - pip:' > envs/esm.yaml
	$(COMPILE) --constraint requirements.lock --no-annotate --no-header | sed 's/^/      - /' >> envs/esm.yaml

clean:  ## remove everything that make and the tests created, except results
	rm -rf $(VENV) .snakemake .pytest_cache .mypy_cache .ruff_cache .hypothesis build *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# No setting helps here: Python's path, setuptools and Snakemake's patterns give these characters a meaning.
define CHECK_PLACE
@case "$$(pwd -P)" in *[:{}$$\\]*) printf '%s: %s\n' "$$(pwd -P)" 'Python and Snakemake cannot be set up \
with : { } $$ or \ in the path; move this folder to a path without them' >&2; exit 1;; esac
endef

# Installing: the lock by hash, then torch by version (its companions differ by platform, and pip
# refuses a mixture of lines with and without hashes), then this project without dependencies.
define CHECK_PYTHON
@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "$(PYTHON) is \
$$($(PYTHON) --version 2>&1), but Python 3.11 or newer is needed; name one with 'make PYTHON=...'" >&2; exit 1; }
@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { echo "$(PYTHON) cannot make virtual \
environments; on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
endef

$(VENV)/.workflow: requirements.lock requirements-torch.txt
	$(CHECK_PLACE)
	$(CHECK_PYTHON)
	@echo "Installing into $(VENV) (once; some minutes)" >&2
	@$(PYTHON) -m venv --clear $(VENV)
	@$(INSTALL) --require-hashes -r requirements.lock
	@$(INSTALL) $(TORCH_FLAGS) -r requirements-torch.txt
	@$(INSTALL) --no-deps --no-build-isolation -e .
	@touch $@

$(VENV)/.test: requirements-test.lock $(VENV)/.workflow
	@$(INSTALL) --require-hashes -r requirements-test.lock
	@touch $@

# The peers of `make bench`, in their own environment, since no test needs them. Without their
# dependencies: the lock has those that they need.
$(BENCH)/.peers: requirements-test.lock requirements-torch.txt tests/benchmarks/requirements.txt
	$(CHECK_PLACE)
	$(CHECK_PYTHON)
	@echo "Installing into $(BENCH) (once; some minutes)" >&2
	@$(PYTHON) -m venv --clear $(BENCH)
	@$(BENCH)/bin/python -m $(PIP) --require-hashes -r requirements-test.lock
	@$(BENCH)/bin/python -m $(PIP) $(TORCH_FLAGS) -r requirements-torch.txt
	@$(BENCH)/bin/python -m $(PIP) --require-hashes --no-deps -r tests/benchmarks/requirements.txt
	@touch $@
