# Three commands matter: `make demo`, `make test` and `make proof`. Each installs what it needs first.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
INSTALLED := $(VENV)/.installed
INSTALLED_DEV := $(VENV)/.installed-dev
MILVUS := .venv-milvus
MILVUS_INSTALLED := $(MILVUS)/.installed

.DEFAULT_GOAL := help
.PHONY: help demo dev test proof test-long test-again pictures lint format docs starter-weights clean $(MILVUS)

help: ## Show this list.
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:[^#]*## /\t/' | expand -t 18

demo: $(INSTALLED) ## Make sample media, index all five modalities, search them.
	$(BIN)/embedding-platform demo

dev: $(INSTALLED) ## Open the Dagster web UI on http://127.0.0.1:3000, with daemon and local Milvus.
	$(BIN)/embedding-platform up

# Two files at once, as much of the time tests wait for servers and for processes that they kill; in their order,
# since those that take longest come first.
test: $(INSTALLED_DEV) $(MILVUS) ## Run the test suite.
	$(BIN)/pytest -n 2 --dist loadfile --no-loadscope-reorder --screenshots=build/screenshots

proof: $(INSTALLED_DEV) $(MILVUS) ## Kill jobs fifty times, run random histories, and compare all models at full size.
	$(BIN)/pytest -n 2 -m "proof and not long" --dist loadfile --no-loadscope-reorder

# Files of many tests come first, which start services and a browser; hundreds of kills and long histories come last,
# and are what BEGIN_BEFORE, a time in seconds since 1970, has skipped where the machine is slow.
test-long: $(INSTALLED_DEV) $(MILVUS) ## Run the tests that take minutes each, which `make test` leaves out.
	$(BIN)/pytest -n 2 -m long --dist loadfile --screenshots=build/screenshots $(if $(BEGIN_BEFORE),--begin-before=$(BEGIN_BEFORE))

test-again: $(INSTALLED_DEV) $(MILVUS) ## Run once more, one after the other, what failed last.
	$(BIN)/pytest -m "long or not long" --last-failed --last-failed-no-failures=none --screenshots=build/screenshots

pictures: ## Take from the last `make test-long` the pictures of the web UI and the search page that README shows.
	cp $(addprefix build/screenshots/,asset-graph.png neighbours.png search-page.png) docs/

lint: $(INSTALLED_DEV) ## Check style, format and types.
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

docs: $(INSTALLED_DEV) ## Build the documentation site into build/site; a broken link fails.
	$(BIN)/mkdocs build --strict
	@echo "open build/site/index.html"

format: $(INSTALLED_DEV) ## Put the code into the house's format.
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

starter-weights: $(INSTALLED) ## Train the built-in starter models again (about an hour on 2 cores).
	$(BIN)/python -m embedding_platform.starter.training

clean: ## Remove the sample media and everything that was made from them.
	rm -rf media .embedding_platform .dagster .tmp_dagster_home_*

# torch comes first and pinned, so that nothing else picks a build of it with other CUDA packages.
$(INSTALLED): pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit("Python 3.11 or newer is needed") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/pip install --constraint constraints.txt torch
	$(BIN)/pip install --constraint constraints.txt --editable '.[starter,openvino]'
	touch $@

$(INSTALLED_DEV): $(INSTALLED)
	$(BIN)/pip install --constraint constraints.txt --editable '.[dev]'
	touch $@

# A Milvus server for the tests marked server, in an environment of its own, because it must not share
# ours. Where it cannot be installed, those tests are skipped and say so.
$(MILVUS): $(if $(MILVUS_TEST_URI),,$(MILVUS_INSTALLED))

$(MILVUS_INSTALLED):
	@{ $(PYTHON) -m venv $(MILVUS) && $(MILVUS)/bin/pip install --quiet --retries 2 milvus==2.3.5 && touch $@; } \
		|| echo "no Milvus server can be installed here: the tests marked server will be skipped"
