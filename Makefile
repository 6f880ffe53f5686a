# Two commands: `make demo` and `make test`. Both make .venv first; neither needs anything but Python and a package index.
#
#   make demo VIDEO=file.mp4              your own video instead of the default one
#   make demo PYTHON=python3.12           another interpreter (3.10 to 3.13)
#   make test PIP_ARGS="--extra-index-url URL"   for example PyTorch's index of CPU builds, where the default index has CUDA ones

PYTHON ?= python3
PIP_ARGS ?=
VIDEO ?=
VENV := .venv
RUN := $(VENV)/bin/python
INSTALLED := $(VENV)/.installed
TRITON := $(VENV)/triton
WITH_TRITON = $(if $(wildcard $(TRITON)/pytriton),EDGEVIS_TRITON_PYTHONPATH=$(abspath $(TRITON)))
SOURCES := $(shell find edgevis runtime export calibration -name '*.py' -o -name '*.safetensors')

.PHONY: demo test lint docs release gpu clean
.DELETE_ON_ERROR:

demo: $(INSTALLED) $(addsuffix .edgevis/manifest.json,$(addprefix bundles/,osnet-x0-25 efficientnet-lite0 prior-net enet))
	$(RUN) -m benchmarks.demo --timed bundles/osnet-x0-25.edgevis bundles/efficientnet-lite0.edgevis bundles/enet.edgevis --output demo $(if $(VIDEO),--video "$(VIDEO)")
	$(RUN) -m benchmarks.showcase --classify bundles/efficientnet-lite0.edgevis --find bundles/prior-net.edgevis --segment bundles/enet.edgevis --output demo

bundles/%.edgevis/manifest.json: $(SOURCES) | $(INSTALLED)
	$(RUN) -m export.build --model $* --target cpu --precision $(PRECISION) --output bundles/$*.edgevis

PRECISION := fp32
bundles/osnet-x0-25.edgevis/manifest.json: PRECISION := fp32,int8

# One thread of PyTorch for each worker: two that wait for each other's are many times slower on a busy machine.
test: $(INSTALLED) $(TRITON)/.tried lint
	OMP_NUM_THREADS=1 $(WITH_TRITON) $(RUN) -m pytest -n 2 --dist loadgroup

# A Triton server for the tests, in a folder of its own: its stub needs NumPy 1, and pip may take nothing else along. There
# is a wheel for x86-64 with glibc 2.35; elsewhere the tests of the server say that they are skipped.
$(TRITON)/.tried: $(INSTALLED)
	mkdir -p $(TRITON)
	-$(RUN) -m pip install --quiet --no-deps --target $(TRITON) 'nvidia-pytriton>=0.7' 'numpy<2' $(PIP_ARGS)
	touch $@

lint: $(INSTALLED)
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(RUN) -m mypy
	$(VENV)/bin/lint-imports

# Builds the ready bundles, which are part of the package, from the weights that ship.
release: $(INSTALLED)
	$(RUN) -m export.release

# On a machine with an NVIDIA GPU: a table of it, gpu-CARD.md, in ten minutes. BUNDLES are built for it elsewhere or here.
BUNDLES ?= $(wildcard bundles/gpu/*.edgevis)
gpu: $(INSTALLED) $(TRITON)/.tried
	$(WITH_TRITON) $(RUN) -m benchmarks.gpu $(BUNDLES)

# Writes site/; a warning ends it.
docs: $(INSTALLED)
	$(RUN) -m mkdocs build --strict --quiet

$(INSTALLED): pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --upgrade pip $(PIP_ARGS)
	$(RUN) -m pip install --editable '.[export,bench,dev]' $(PIP_ARGS) --progress-bar on
	touch $@

clean:
	rm -rf demo bundles build dist site *.egg-info
