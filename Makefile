# Two commands matter: `make demo` and `make test`. Each sets up what it needs on a fresh machine
# with Python 3.11 or newer, git and make.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
# Which build of torch: 2.13.0 is what the constraints pin. Without a GPU, choose the CPU build with
#   make TORCH_INDEX=https://download.pytorch.org/whl/cpu …
TORCH_INDEX ?=
SETUP := $(VENV)/.ready

.PHONY: demo up test test-fast check style openapi bench bench-peers bench-engine bench-chaos clean

demo: $(SETUP)
	$(BIN)/python -m local.demo

up: $(SETUP)
	@$(BIN)/python -m local.up

# Two processes, as most tests wait for other processes now and then. Each computes with one thread,
# or the threads of both would wait for one another.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal

test: check
	$(PYTEST)

test-fast: $(SETUP)
	$(PYTEST) -m "not slow"

check: $(SETUP)
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports
	$(BIN)/pydoclint --quiet jobs planning engine evaluation calibration programs training service worker modelpress local
	$(BIN)/codespell jobs planning engine evaluation calibration programs training service worker modelpress local tests docs examples benchmarks README.md CHANGELOG.md CONTRIBUTING.md
	$(BIN)/python -m service.openapi --check

style: $(SETUP)
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

openapi: $(SETUP)
	$(BIN)/python -m service.openapi > openapi.yaml

# About six minutes at full size; fills the tables of docs/benchmarks.md.
bench: $(SETUP)
	$(BIN)/python -m benchmarks.transfer
	$(BIN)/python -m benchmarks.latency
	$(BIN)/python -m benchmarks.memory

# The tools that the engine is compared with, each in an environment of its own: about 5 GB.
bench-peers: $(SETUP)
	$(BIN)/python -m benchmarks.peers $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX))

# About half an hour and 30 GB of disk; fills its table and draws docs/engine.svg.
bench-engine: $(SETUP) bench-peers
	$(BIN)/python -m benchmarks.engine

# About half an hour: 2,000 jobs while everything is killed, and plain Celery beside them.
bench-chaos: $(SETUP)
	$(BIN)/python -m benchmarks.chaos --seed 1 --jobs 2000
	$(BIN)/python -m benchmarks.chaos.plain --seed 1 --jobs 2000

$(SETUP): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet $(if $(TORCH_INDEX),--extra-index-url $(TORCH_INDEX)) -c constraints.txt torch
	$(BIN)/pip install --quiet -c constraints.txt -e '.[dev]'
	touch $(SETUP)

clean:
	rm -rf $(VENV) .peers .data build *.egg-info
