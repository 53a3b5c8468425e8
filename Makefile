# `make demo` and `make test` are all a newcomer needs: each makes .venv, builds and installs.
PYTHON ?= python3
TORCH ?= 2.13.0
# processes that share the tests; a thread that waits leaves its core to others
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal
CSRC := $(wildcard csrc/*.cpp csrc/*.h csrc/torch/*.cpp csrc/torch/*.h)
SOURCES := $(CSRC) setup.py pyproject.toml

.PHONY: demo test test-all sanitize lint format bench docs clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.test
	$(PYTEST)

# the operators over a C++ extension that checks every access, built beside the usual one;
# other parts of torch and Triton are not under test
SANITIZED := $(CURDIR)/build/sanitize/lib
SANITIZE_TESTS := $(filter-out %_triton.py %_torch.py,$(wildcard $(addprefix tests/test_,\
	tensor_product_conv*.py radial_conv.py scale_shift*.py zbl.py edge_*.py gate.py *_linear.py\
	fuzz.py threads.py)))
sanitize: $(VENV)/.test
	FASTMLIP_SANITIZE=1 $(BIN)/python setup.py -q build --build-base build/sanitize \
		--build-lib $(SANITIZED)
	for isa in "" portable; do \
	FASTMLIP_ISA=$$isa PYTHONPATH=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so):$$(g++ -print-file-name=libstdc++.so)" \
		$(BIN)/pytest -q -p no:cacheprovider -m "not slow" $(SANITIZE_TESTS) || exit 1; done

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
