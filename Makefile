# `make demo` and `make test` are all a newcomer needs: each makes .venv, builds and installs.
PYTHON ?= python3
TORCH ?= 2.13.0
# with CUDA it brings its own Triton; a CPU build brings none, and tests compile kernels with one
TRITON ?= $(if $(filter 2.13.0,$(TORCH)),triton==3.7.1)
# processes that share the tests; a thread that waits leaves its core to others
JOBS ?= 2
VENV := .venv
BIN := $(VENV)/bin
PYTEST = OMP_WAIT_POLICY=passive $(BIN)/python -m pytest -q -n $(JOBS) --dist worksteal
CSRC := $(filter-out csrc/lammps/%,$(wildcard csrc/*/*.cpp csrc/*/*.h))
# compiled on the machine of the user, by `fastmlip lammps-plugin`
PLUGIN := $(wildcard csrc/lammps/*.cpp csrc/lammps/*.h)
SOURCES := $(CSRC) setup.py pyproject.toml

.PHONY: demo demo-allegro demo-lammps demo-sevennet test test-all test-sevennet test-mace tritons test-torch fingerprints sanitize tsan lint format bench bench-all bench-mace docs wheel gpu clean

demo: $(VENV)/.demo
	$(BIN)/python examples/demo.py

demo-allegro: $(VENV)/.demo
	$(BIN)/python examples/demo.py --model allegro --out demo_output/allegro

demo-lammps: $(VENV)/.demo $(VENV)/.lammps
	$(BIN)/python examples/lammps/demo.py

demo-sevennet: $(VENV)/.demo $(VENV)/.sevennet
	$(BIN)/python examples/sevennet_md.py

test: $(VENV)/.test
	$(PYTEST) -m "not slow"

test-all: $(VENV)/.test tritons
	$(PYTEST)

# the Triton of the oldest torch that is supported, and the newest, each in a folder of its own:
# tests/test_triton_versions.py compiles the GPU kernels with them. Half a GB each
TRITONS := $(addprefix build/triton/,3.6.0 newest)
tritons: $(TRITONS)
$(TRITONS): build/triton/%: | $(VENV)/.test
	$(BIN)/pip install -q --no-deps --target $@.part triton$(patsubst ==newest,,==$*)
	mv $@.part $@

# the tests of one host; `make test` runs them too
test-sevennet: $(VENV)/.test
	$(PYTEST) -m "not slow" $(wildcard tests/test_sevennet*.py)

# MACE pins an e3nn that NequIP and SevenNet do not take: its tests have an environment of their own,
# which has all else from the first one
MACE := .venv-mace
test-mace: $(MACE)/.ready
	$(subst $(BIN),$(MACE)/bin,$(PYTEST)) -m "not slow" $(wildcard tests/test_mace*.py)
$(MACE)/.ready: pyproject.toml $(VENV)/.test
	$(PYTHON) -m venv $(MACE)
	$(BIN)/python -c "import sysconfig as s; print(f'import site; site.addsitedir(\"{s.get_path(\"purelib\")}\")')" \
		> $$($(MACE)/bin/python -c "import sysconfig as s; print(s.get_path('purelib'))")/first.pth
	$(MACE)/bin/pip install -q --no-build-isolation -c $(PINS) "mace-torch>=0.3.16,<0.4"
	touch $@

# a slice of the suite over the wheel in dist/ (`make wheel`) and another torch, in an environment of
# its own: make test-torch TORCH=2.11.0
OTHER := build/torch-$(TORCH)
SLICE := $(addprefix tests/test_,operators.py compile_export.py check.py nequip_compile.py)
test-torch:
	ls dist/fastmlip-*.whl || { echo "there is no wheel in dist/: run make wheel first"; exit 1; }
	test -x $(OTHER)/bin/python || $(PYTHON) -m venv $(OTHER)
	$(OTHER)/bin/pip install -q "torch==$(TORCH)"
	$(OTHER)/bin/pip install -q "torch==$(TORCH)" "$$(ls dist/fastmlip-*.whl)[suite]"
	$(OTHER)/bin/pip install -q --no-deps --force-reinstall dist/fastmlip-*.whl
	OMP_WAIT_POLICY=passive $(OTHER)/bin/pytest -q -n $(JOBS) --dist worksteal -m "not slow" $(SLICE)

# of the installed hosts' classes: for a new version of one, see CONTRIBUTING.md
fingerprints: $(VENV)/.test
	$(BIN)/python -m fastmlip.integrations.fingerprints

# the operators over a C++ extension that checks every access, built beside the usual one;
# other parts of torch and Triton are not under test
SANITIZED := $(CURDIR)/build/sanitize/lib
SANITIZE_TESTS := $(filter-out %_triton.py %_torch.py,$(wildcard $(addprefix tests/test_,\
	tensor_product_conv*.py radial_conv.py scale_shift*.py zbl.py edge_*.py gate.py *_linear.py\
	fuzz.py tables.py threads.py)))
sanitize: $(VENV)/.test
	FASTMLIP_SANITIZE=1 $(BIN)/python setup.py -q build --build-base build/sanitize \
		--build-lib $(SANITIZED)
	for isa in "" portable; do \
	FASTMLIP_ISA=$$isa PYTHONPATH=$(SANITIZED) ASAN_OPTIONS=detect_leaks=0 \
		LD_PRELOAD="$$(g++ -print-file-name=libasan.so):$$(g++ -print-file-name=libstdc++.so)" \
		$(BIN)/pytest -q -p no:cacheprovider -m "not slow" $(SANITIZE_TESTS) || exit 1; done

# every kernel on several threads under the thread sanitizer, in a program without torch, whose own
# threads it could not see into; -R: where addresses are random, it may find no room for its own
TSAN := build/tsan
TSAN_OBJECTS := $(patsubst csrc/%.cpp,$(TSAN)/%.o,$(filter-out %/old_glibc.cpp csrc/torch/%,\
	$(filter %.cpp,$(CSRC))))
TSAN_CXX = g++ -Icsrc -std=c++17 -O1 -g -fsanitize=thread -pthread -ffp-contract=fast -Wno-psabi \
	-DFASTMLIP_NO_UNROLL -DFASTMLIP_ISA=portable -DFASTMLIP_VECTOR_BYTES=16 \
	-DFASTMLIP_L_MAX=$(shell sed -n 's/^L_MAX = \([0-9]*\).*/\1/p' fastmlip/problem.py)
tsan: $(TSAN)/threads
	TSAN_OPTIONS=halt_on_error=1 setarch -R $<
$(TSAN)/threads: tests/threads.cpp tests/threads.h $(TSAN_OBJECTS)
	$(TSAN_CXX) $< $(TSAN_OBJECTS) -o $@
$(TSAN)/%.o: csrc/%.cpp $(filter %.h,$(CSRC)) fastmlip/problem.py
	@mkdir -p $(@D)
	$(TSAN_CXX) -c $< -o $@

# within ten minutes on 2 cores; bench-all says how long it takes
bench: $(VENV)/.test
	$(BIN)/fastmlip bench

bench-all: $(VENV)/.test
	$(BIN)/fastmlip bench --all --report build/bench

# models of MACE, in the environment of their tests
bench-mace: $(MACE)/.ready
	$(MACE)/bin/python -c "from fastmlip.cli import app; app()" bench --all -k mace

docs: $(VENV)/.docs
	$(BIN)/python -m sphinx -q -W --keep-going -E docs build/docs
	@echo "build/docs/index.html"

# dist/: the sdist, and a wheel that loads from glibc 2.28 on; torch brings its own libraries
PLATFORM := manylinux_2_28_$(shell uname -m)
OF_TORCH := --exclude 'libtorch*' --exclude 'libc10*'
wheel: $(VENV)/.wheel
	rm -rf dist build/wheel build/lib build/lib.* build/bdist.*
	$(BIN)/python -c "from setuptools.build_meta import build_sdist as make; make('dist')" > /dev/null
	$(BIN)/pip wheel -q --no-deps --no-build-isolation -w build/wheel .
	PATH=$(CURDIR)/$(BIN):$$PATH auditwheel repair --strip --plat $(PLATFORM) --only-plat \
		$(OF_TORCH) -w dist build/wheel/*.whl

# one command for a machine with a GPU: tests and times, eight minutes after the extension is built.
# It runs with the torch and the Triton of PYTHON, in an environment of its own that sees what PYTHON
# has; only what is missing there is installed. OPTIONS are those of `fastmlip gpu-check`
GPU := build/gpu
DEVICE ?= cuda
gpu:
	$(PYTHON) bench/gpu_ready.py $(DEVICE)
	test -x $(GPU)/bin/python || $(PYTHON) -m venv $(GPU)
	$(PYTHON) -c "import sysconfig as s; [print(f'import site; site.addsitedir({s.get_path(p)!r})') \
		for p in ('purelib', 'platlib')]" > "$$($(GPU)/bin/python -c \
		"import sysconfig as s; print(s.get_path('purelib'))")/there.pth"
	$(GPU)/bin/pip list --format freeze | grep -iE '^(torch|triton|pytorch-triton-rocm|numpy)=' \
		> $(GPU)/pins
	$(GPU)/bin/pip install -q -c $(GPU)/pins "setuptools>=77" ninja wheel
	$(GPU)/bin/pip install -q --no-build-isolation -c $(GPU)/pins -e ".[bench]"
	$(GPU)/bin/fastmlip gpu-check --device $(DEVICE) --out gpu_report $(OPTIONS)

lint: $(VENV)/.lint
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/clang-format --dry-run --Werror $(CSRC) $(PLUGIN) tests/threads.cpp tests/threads.h
	$(BIN)/mypy

format: $(VENV)/.lint
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .
	$(BIN)/clang-format -i $(CSRC) $(PLUGIN) tests/threads.cpp tests/threads.h

# torch first, and pinned: another package's loose requirement could pull in a CUDA build. The stamp
# holds the pins: an environment that has been given another torch is none of this one
PINS := $(VENV)/.torch-$(TORCH)
$(PINS): Makefile
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	rm -f $(VENV)/.torch-*
	$(BIN)/pip install -q "torch==$(TORCH)"
	$(BIN)/pip install -q "setuptools>=77" ninja wheel
	printf '%s\n' "torch==$(TORCH)" $(TRITON) > $@

# ninja compiles only what changed
$(VENV)/.built: $(PINS) $(SOURCES)
	$(BIN)/pip install -q --no-build-isolation -c $(PINS) -e .
	touch $@

EXTRAS := $(addprefix $(VENV)/.,test demo lammps sevennet lint docs wheel)
$(EXTRAS): $(VENV)/.%: $(VENV)/.built
	$(BIN)/pip install -q --no-build-isolation -c $(PINS) -e ".[$*]"
	touch $@

clean:
	rm -rf $(VENV) $(MACE) build dist *.egg-info fastmlip/_C*.so
