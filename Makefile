# Every target sets up what it needs: a virtual environment in .venv with the versions of constraints.txt.
PYTHON ?= python3
BIN := .venv/bin
INSTALLED := .venv/.installed
export PIP_CONSTRAINT := $(CURDIR)/constraints.txt
export PIP_DISABLE_PIP_VERSION_CHECK := 1

.PHONY: help demo test test-backends test-ipex test-upstream check bench bench-memory bench-backends conformance docs clean

help:
	@echo "make demo    embed real texts with and without hfaccel, and compare"
	@echo "make test    run all tests"
	@echo "make test-backends  the contract over every backend, openvino and inductor too (minutes)"
	@echo "make test-ipex      the same for ipex, in an environment of its own with torch 2.8 (7 GB)"
	@echo "make test-upstream CHECKOUT=folder of transformers  its own tests, with and without hfaccel (an hour)"
	@echo "make check   lint, types, formatting, C tests under sanitizers, and of Arm's kernels under qemu"
	@echo "make bench   run the benchmarks that need nothing else (about 30 minutes)"
	@echo "make bench-memory  every allocator on the kernel list's workload, with a picture (about an hour)"
	@echo "make bench-backends  hfaccel against every engine on the same work (about an hour)"
	@echo "make conformance  stock against optimized for every architecture of transformers (about 20 minutes)"
	@echo "make docs    generate docs/knobs.md, families.md, placement.md and the end of troubleshooting.md"

$(INSTALLED): constraints.txt pyproject.toml native/CMakeLists.txt $(shell find native -name "*.[ch]")
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --progress-bar off torch==2.13.0
	$(BIN)/pip install --quiet --progress-bar off --editable '.[demo,test]'
	@touch $@

demo: $(INSTALLED)
	$(BIN)/python demo/run.py

test: $(INSTALLED)
	$(BIN)/pytest

test-backends: $(INSTALLED)
	$(BIN)/pip install --quiet --progress-bar off --editable '.[onnxruntime,openvino]'
	HFACCEL_TEST_BACKENDS=1 $(BIN)/pytest tests/backends tests/test_selection.py

# The extension is retired: it needs torch 2.8, which is below what hfaccel asks for. See benchmarks/backends.py.
test-ipex: $(INSTALLED)
	$(BIN)/python benchmarks/backends.py --setup --engines ipex
	build/ipex/bin/pip install --quiet --progress-bar off --no-deps --force-reinstall .
	build/ipex/bin/pytest tests/backends -k ipex

# CHECKOUT: a clone of transformers at the tag of the installed version; tests/upstream/README.md.
test-upstream: $(INSTALLED)
	$(BIN)/pip install --quiet --progress-bar off --requirement tests/upstream/requirements.txt
	OMP_NUM_THREADS=1 $(BIN)/python tests/upstream/run.py transformers --checkout $(CHECKOUT)

check: $(INSTALLED)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/clang-format --dry-run --Werror $(shell find native -name "*.[ch]")
	$(MAKE) native-test SANITIZE=address,undefined
	$(MAKE) native-test SANITIZE=thread
	$(MAKE) native-test-arm

# Needs Debian's gcc-aarch64-linux-gnu and qemu-user.
.PHONY: native-test-arm
native-test-arm: $(INSTALLED)
ifeq ($(and $(shell command -v aarch64-linux-gnu-gcc),$(shell command -v qemu-aarch64)),)
	@echo "the kernels for Arm are not tested: aarch64-linux-gnu-gcc or qemu-aarch64 is missing"
else
	$(BIN)/cmake -S native -B build/native-arm -DHFACCEL_TESTS=ON -DCMAKE_TOOLCHAIN_FILE=$(CURDIR)/native/aarch64.cmake
	$(BIN)/cmake --build build/native-arm --parallel $(shell nproc)
	$(BIN)/ctest --test-dir build/native-arm --output-on-failure -R kernels
endif

.PHONY: native-test
native-test: $(INSTALLED)
	$(BIN)/cmake -S native -B build/native-$(SANITIZE) -DHFACCEL_TESTS=ON -DHFACCEL_SANITIZE=$(SANITIZE)
	$(BIN)/cmake --build build/native-$(SANITIZE) --parallel $(shell nproc)
	$(BIN)/ctest --test-dir build/native-$(SANITIZE) --output-on-failure

bench: $(INSTALLED)
	$(BIN)/python benchmarks/accuracy.py
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/faults.py
	$(BIN)/python benchmarks/allocator.py
	$(BIN)/python benchmarks/growth.py
	$(BIN)/python benchmarks/touch.py
	$(BIN)/python benchmarks/sharing.py
	$(BIN)/python benchmarks/coldstart.py
	$(BIN)/python benchmarks/quota.py
	$(BIN)/python benchmarks/instances.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/pipelines.py

.PHONY: bench-backends
bench-backends: $(INSTALLED)
	$(BIN)/python benchmarks/backends.py

bench-memory: $(INSTALLED)
	$(BIN)/hfaccel bench memory --save benchmarks/results/$(shell date +%F)-memory.json \
	  --picture benchmarks/results/$(shell date +%F)-memory.svg

conformance: $(INSTALLED)
	OMP_NUM_THREADS=1 $(BIN)/python tests/conformance/table.py --page docs/conformance.md

docs: $(INSTALLED)
	$(BIN)/python docs/generate.py
	$(BIN)/python docs/placement.py

clean:
	rm -rf .venv build dist
