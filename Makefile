# One door: `make help` lists the targets. `make sample` and `make test` set everything up themselves.
.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
SHELL := bash
.SHELLFLAGS := -euo pipefail -c
MAKEFLAGS += --no-builtin-rules

PYTHON ?= python3.11
MODEL ?= emoji-dit
LABEL ?= food-fruit
PROMPT ?= red heart
SEED ?= 7

venv := .venv
bin := $(venv)/bin
installed := $(venv)/.installed
name := $(if $(filter emoji-dit,$(MODEL)),emoji,$(MODEL))
bundle := build/$(name)
# Label and prompt go through the environment: a shell would read their quotes.
export LABEL PROMPT
what := $(if $(filter emoji-dit,$(MODEL)),--label "$$LABEL",-p "$$PROMPT") -s $(SEED)

compiler_sources := $(shell find export models runtime/latentc -name '*.py' -not -path '*/checkpoints/*')
checkpoint_files := $(wildcard models/ldm/checkpoints/$(MODEL)/*.json models/ldm/checkpoints/$(MODEL)/*/*)

.PHONY: help
help: ## lists the targets
	@grep -hE '^[a-z-]+:.*## ' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-12s %s\n", $$1, $$2}'

.PHONY: dev
dev: $(installed) ## makes .venv with everything pinned; python and latentc in its bin

# hatchling comes first and the build isolation is off, so that the pinned build backend is the one used.
$(installed): pyproject.toml runtime/pyproject.toml constraints.txt
	test -x $(bin)/python || $(PYTHON) -m venv $(venv)
	$(bin)/python -m pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt pip
	$(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group dev
	$(bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable "./runtime[cpu,text,image]"
	touch $@

.PHONY: lock
lock: ## writes constraints.txt from what .venv holds
	{ echo '# Every version that make dev installs. Written by: make lock'; \
	  $(bin)/python -m pip list --format=freeze | grep -v '^latentc==' | sed 's/+cpu$$//'; \
	  sed -n '/^# What make binary adds/,$$p' constraints.txt; } > constraints.tmp
	mv constraints.tmp constraints.txt

.PHONY: sample
sample: build/sample.png ## exports a shipped model and draws build/sample.png (MODEL=emoji-flux PROMPT="red heart")

$(bundle)/manifest.json: $(installed) $(compiler_sources) $(checkpoint_files)
	$(bin)/python -m export $(MODEL) --output $(bundle)

$(bundle)/engines/.built: $(bundle)/manifest.json
	$(bin)/latentc build $(bundle) --backend onnxruntime
	touch $@

# Drawn again when something else is asked for: the file holds the request, and is touched when that changes.
.PHONY: FORCE
build/.sample: FORCE
	@mkdir -p build
	@asked="$(bundle) $(SEED) $$LABEL $$PROMPT"; \
	  printf '%s\n' "$$asked" | cmp -s - $@ || printf '%s\n' "$$asked" > $@

build/sample.png: $(bundle)/engines/.built build/.sample
	$(bin)/latentc sample $(bundle) $(what) -b 4 -o $@

.PHONY: test
test: lint ## runs everything that CI runs
	OMP_NUM_THREADS=1 $(bin)/python -m pytest -n 2 --dist loadgroup

.PHONY: lint
lint: $(installed) ## ruff, mypy (strict), import-linter
	$(bin)/ruff check .
	$(bin)/ruff format --check .
	$(bin)/mypy
	PYTHONPATH=.:runtime $(bin)/lint-imports

.PHONY: format
format: $(installed) ## formats the code
	$(bin)/ruff check --fix .
	$(bin)/ruff format .

.PHONY: train
train: $(installed) ## trains a shipped model from nothing (MODEL=emoji-dit or emoji-flux, two hours); resumes
	OMP_WAIT_POLICY=PASSIVE $(bin)/python -m $(if $(filter emoji-flux,$(MODEL)),models.ldm.text_to_image.train,models.ldm.train) $(if $(shell command -v c++),--compile)

.PHONY: families
families: $(installed) ## draws with every family and writes the README's table of them
	$(bin)/python -m benchmarks.families

.PHONY: evaluate
evaluate: $(installed) ## measures a shipped model and rewrites the figures of its card
	$(bin)/python -m $(if $(filter emoji-flux,$(MODEL)),models.ldm.text_to_image.evaluate,models.ldm.evaluate)

.PHONY: test-gpu
test-gpu: $(installed) ## runs the tests that need an NVIDIA GPU; says why where there is none
	$(bin)/python -m pytest -n0 -m gpu -rs

.PHONY: bench
bench: $(installed) ## measures latentc beside its peers on this CPU (half an hour): docs/benchmarks.md
	$(bin)/python -m benchmarks.cpu
	$(bin)/python -m benchmarks.cpu.environments plot
	build/bench/env/plot/bin/python benchmarks/cpu/plot.py benchmarks/results/bench.json docs/images
	$(bin)/python -m benchmarks.cpu.page

.PHONY: bench-gpu
bench-gpu: $(installed) ## measures on an NVIDIA GPU (an hour): benchmarks/results/gpu_*.json; says why where there is none
	@reason=$$($(bin)/python -c 'from benchmarks.gpu.where import why_no_gpu; print(why_no_gpu() or "")'); \
	if [ -n "$$reason" ]; then echo "skipped: $$reason"; exit 0; fi; \
	set -x; \
	$(bin)/python -m benchmarks.gpu.prepare; \
	$(bin)/python -m benchmarks.gpu.match build/gpu/emoji-dit build/gpu/emoji-flux; \
	$(bin)/python -m benchmarks.gpu.loop build/gpu/emoji-dit build/gpu/emoji-flux; \
	$(bin)/python -m benchmarks.gpu.peers; \
	$(bin)/python -m benchmarks.gpu.plot benchmarks/results/gpu_peers.json docs/images/gpu_peers.svg

# An environment of its own, without torch: LoadGen, and what the runtime needs.
loadgen_bin := build/bench/loadgen/bin
$(loadgen_bin)/.installed: benchmarks/peers/loadgen.txt
	test -x $(loadgen_bin)/python || $(PYTHON) -m venv build/bench/loadgen
	$(loadgen_bin)/python -m pip install --quiet --disable-pip-version-check --requirement benchmarks/peers/loadgen.txt
	touch $@

.PHONY: bench-mlperf
bench-mlperf: $(loadgen_bin)/.installed $(bundle)/engines/.built ## runs MLPerf LoadGen on a shipped model: benchmarks/results/mlperf.json (two minutes)
	PYTHONPATH=.:runtime $(loadgen_bin)/python -m benchmarks.mlperf $(bundle)

.PHONY: wheel
wheel: $(installed) ## builds the runtime's wheel into build/wheel
	$(bin)/python -m pip wheel --quiet --no-deps --no-build-isolation --wheel-dir build/wheel ./runtime

# An environment of its own: what PyInstaller does not see it cannot put in. tokenizers comes without what it depends on,
# since latentc calls nothing that needs it (32 MB).
binary_bin := build/binary-venv/bin
$(binary_bin)/.installed: pyproject.toml runtime/pyproject.toml constraints.txt
	test -x $(binary_bin)/python || $(PYTHON) -m venv build/binary-venv
	$(binary_bin)/python -m pip install --quiet --disable-pip-version-check --upgrade --constraint constraints.txt pip
	$(binary_bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --group binary
	$(binary_bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-build-isolation --editable "./runtime[cpu,image]"
	$(binary_bin)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt --no-deps tokenizers
	touch $@

.PHONY: binary
binary: build/binary/latentc/latentc ## builds build/binary/latentc, a folder that runs without Python (docs/low-latency.md)

build/binary/latentc/latentc: $(binary_bin)/.installed $(wildcard runtime/binary/*) $(shell find runtime/latentc -name '*.py')
	$(binary_bin)/python -m PyInstaller runtime/binary/latentc.spec --noconfirm --log-level WARN \
	  --distpath build/binary --workpath build/binary-work
	touch $@

.PHONY: clean
clean: ## removes what was built (not .venv)
	rm -rf build .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache
