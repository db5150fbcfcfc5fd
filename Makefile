# Two commands are enough: `make book` and `make test`. Each sets up what it needs first.

PROFILE ?= mini
PYTHON ?= python3
VENV ?= .venv
LOCK ?= yes
WORKERS ?= 2
BUILD ?= $(or $(THREEGATES_BUILD),build)
THREEGATES_BUILD := $(BUILD)
export THREEGATES_BUILD VENV LOCK TORCH_INDEX_URL

BIN := $(VENV)/bin
NOTEBOOKS := $(wildcard notebooks/*.ipynb)

.PHONY: help book test test-planted lint bench clean clean-lab lock setup lm
.DEFAULT_GOAL := help

help:
	@echo 'make book       train the small models, measure, render the study: $(BUILD)/html/index.html'
	@echo 'make test       run the tests'
	@echo 'make test-planted   judge 40 studies of each planted truth (half an hour)'
	@echo 'make lint       check style, types, spelling, and that notebooks carry no outputs'
	@echo 'make bench      measure speed against what one would take instead (20 minutes, 16 GB)'
	@echo 'make lm         take the language model too, the third subject: one package of 93 MB'
	@echo 'make clean      remove what was rendered;  make clean-lab  what was trained and measured'
	@echo 'make lock       write requirements.lock anew from pyproject.toml (needs uv)'
	@echo
	@echo 'PROFILE=smoke|mini|full|released|paper   how much is trained and measured (now: $(PROFILE))'
	@echo 'BUILD=folder                    where everything that is built goes (now: $(BUILD))'
	@echo 'PYTHON=python3.12               the Python to start from (now: $(PYTHON))'
	@echo 'TORCH_INDEX_URL=address         take torch from this index, for example its CPU build'
	@echo 'LOCK=no                         take the newest packages that pyproject.toml allows'

setup:
	@$(PYTHON) scripts/set_up.py

lm:
	@LM=yes $(PYTHON) scripts/set_up.py

book: setup
	@$(BIN)/threegates book --profile $(PROFILE)

# One thread each: two processes with two threads on two cores are far slower than with one. Neighbours stay
# with one worker until another has none left, so that what a file sets up is set up once.
test: setup
	@env -u THREEGATES_BUILD OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 \
		$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal $(PYTEST_ARGS)

# How often the rules of claims.yaml are wrong and right where the truth was planted.
test-planted: setup
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 PLANTED_WORKERS=$(WORKERS) \
		$(BIN)/python -m pytest -s tests/evidence/limits.py $(PYTEST_ARGS)

lint: setup
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/codespell
	$(if $(NOTEBOOKS),$(BIN)/nbstripout --verify --keep-id $(NOTEBOOKS))

bench: setup
	@OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 $(BIN)/python -m benchmarks --json $(BUILD)/benchmarks.json $(BENCH_ARGS)

clean:
	rm -rf $(BUILD)/notebooks $(BUILD)/book-src $(BUILD)/html $(BUILD)/released

clean-lab:
	rm -rf $(BUILD)/lab $(BUILD)/records

# For every supported Python at once; torch is pinned in scripts/set_up.py instead.
lock:
	uv pip compile pyproject.toml --all-extras --universal --python-version 3.11 --generate-hashes \
		--no-emit-package torch --no-emit-index-url --no-header --no-annotate --quiet -o requirements.lock
