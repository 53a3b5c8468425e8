# `make demo` and `make test` are all a newcomer needs: each makes .venv, builds and installs.
PYTHON ?= python3
TORCH ?= 2.13.0
VENV := .venv
BIN := $(VENV)/bin
CSRC := $(wildcard csrc/*.cpp csrc/*.h csrc/torch/*.cpp csrc/torch/*.h)
SOURCES := $(CSRC) setup.py pyproject.toml

.PHONY: demo test test-all lint format bench docs clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(BIN)/python -m pytest -q -m "not slow"

test-all: $(VENV)/.test
	$(BIN)/python -m pytest -q

bench: $(VENV)/.test
	$(BIN)/python -m pytest bench --benchmark-only

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -E docs build/docs
	@echo "build/docs/index.html"

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC)
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC)

# torch first, and pinned: another package's loose requirement could pull in a CUDA build
$(VENV)/.torch: Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/pip install -q "torch==$(TORCH)"
	$(BIN)/pip install -q "setuptools>=77" ninja wheel
	touch $@

# ninja compiles only what changed
$(VENV)/.built: $(VENV)/.torch $(SOURCES)
	$(BIN)/pip install -q --no-build-isolation -e .
	touch $@

$(VENV)/.test $(VENV)/.demo $(VENV)/.lint $(VENV)/.docs: $(VENV)/.%: $(VENV)/.built
	$(BIN)/pip install -q --no-build-isolation -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) build *.egg-info fastmlip/_C*.so
