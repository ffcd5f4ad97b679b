# make study    one command from a bare checkout to the report (DEVICE=cuda13 or tpu for those;
#               JOBS models at a time, one on a TPU, which a process has to itself)
# make test     installs what the tests need and runs them (test-slow: the long ones; test-parity:
#               against other libraries, in an environment of their own)
# make docs     an index of the API in docs/, from the docstrings
PYTHON ?= python3
DEVICE ?= cpu
WORKDIR ?= runs/emoji
JOBS ?= 2
VENV ?= .venv
PARITY ?= .venv-parity
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip --disable-pip-version-check install --quiet
CONSTRAINTS := tests/constraints.txt
EXTRA := $(if $(filter-out cpu,$(DEVICE)),$(DEVICE))

.DELETE_ON_ERROR:
ifeq ($(filter $(DEVICE),cpu cuda13 tpu),)
$(error DEVICE is '$(DEVICE)'; expected cpu, cuda13 or tpu)
endif

.PHONY: study test test-slow test-parity lint format bench docs clean

study: $(VENV)/.installed-$(DEVICE)
	$(BIN)/python -m noisy_fm.study --config=configs/study/emoji.py --workdir=$(WORKDIR) \
	  $(if $(filter tpu,$(DEVICE)),,--scheduler=local:$(JOBS)) $(ARGS)

test: $(VENV)/.installed-test
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m pytest -n 2 --dist loadfile $(ARGS)

test-slow: $(VENV)/.installed-test
	$(BIN)/mypy
	XLA_FLAGS=--xla_cpu_use_fusion_emitters=true $(BIN)/python -m pytest -n 2 --dist loadfile -m slow $(ARGS)

test-parity: $(PARITY)/.installed
	$(PARITY)/bin/python -m pytest -n 2 --dist loadfile -m parity -W ignore $(ARGS)

lint: $(VENV)/.installed-test
	$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

format: $(VENV)/.installed-test
	$(BIN)/ruff check --fix . && $(BIN)/ruff format .

bench: $(VENV)/.installed-bench
	$(BIN)/python tools/bench.py $(NAME) $(ARGS)

docs: $(VENV)/.installed-docs
	JAX_PLATFORMS=cpu $(BIN)/python tools/docs.py

$(VENV)/bin/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
	  { echo "error: noisy_fm needs Python 3.11 or newer; $(PYTHON) is $$($(PYTHON) --version 2>&1). Try make PYTHON=python3.12"; exit 2; }
	$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 2; }

# The lock is for the Python it was made with; newer ones resolve the ranges of pyproject.toml.
$(VENV)/.installed-cpu $(VENV)/.installed-cuda13 $(VENV)/.installed-tpu: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	@echo "installing noisy_fm ($(DEVICE)) into $(VENV) …"
	$(PIP) $(if $(EXTRA),-e '.[$(EXTRA)]',$(call locked) -e .)
	@touch $@

$(VENV)/.installed-test: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) $(call locked) -e '.[test]'
	@touch $@ $(VENV)/.installed-cpu

$(VENV)/.installed-docs: pyproject.toml $(CONSTRAINTS) | $(VENV)/bin/python
	$(PIP) $(call locked) -e '.[docs]'
	@touch $@

# Its own, as it is large: PyTorch, open_clip, timm.
$(PARITY)/.installed: pyproject.toml
	$(PYTHON) -m venv $(PARITY)
	$(PARITY)/bin/python -m pip --disable-pip-version-check install --quiet -e '.[parity]'
	@touch $@

$(VENV)/.installed-bench: pyproject.toml | $(VENV)/bin/python
	$(PIP) -e '.[bench]'
	@touch $@

locked = $$($(BIN)/python -c 'import sys; print("-c $(CONSTRAINTS)" if sys.version_info[:2] == (3, 11) else "")')

clean:
	rm -rf $(VENV) .pytest_cache .ruff_cache .mypy_cache
