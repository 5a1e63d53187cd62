# drivesim: make help lists the targets.
PYTHON ?= python3
VENV   ?= .venv
OUT    ?= runs/demo
BUDGET ?=
DATA   ?=
BIN    := $(VENV)/bin

.PHONY: help setup demo test lint bench race ablations clean

help: ## this list
	@grep -E '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 10

setup: $(VENV)/.done ## .venv with everything, pinned

$(VENV)/.done: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --upgrade pip
	$(BIN)/pip install --quiet torch==2.13.0
	$(BIN)/pip install --quiet --constraint constraints.txt --editable '.[dev]'
	@touch $@

demo: setup ## data, training, video, report in half an hour: [DATA=folder of videos] [OUT=folder] [BUDGET=minutes of training]
	@$(BIN)/python -m benchmarks.demo out='$(OUT)' data='$(DATA)' $(if $(BUDGET),budget_minutes=$(BUDGET))

test: setup ## the tests, in two processes; a file stays in one, whose fixtures it shares
	@$(BIN)/python -m pytest tests -n 2 --dist loadfile

lint: setup ## style and types
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/mypy

bench: setup ## our denoiser against diffusers' video U-Nets, paired
	@$(BIN)/python -m benchmarks.denoiser

race: setup ## time to quality against diffusers' video U-Nets, hours: [BUNDLE=trained bundle] [DATA=its clip store]
	@$(BIN)/python -m benchmarks.time_to_quality bundle='$(or $(BUNDLE),$(OUT)/bundle)' data='$(or $(DATA),$(OUT)/data)'

ablations: setup ## the paper's ablations, trained at equal budgets and judged alike: [BUDGET=minutes of training, 60] [OUT=folder]
	@$(BIN)/python -m benchmarks.ablations out='$(if $(filter file,$(origin OUT)),runs/ablations,$(OUT))' budget_minutes=$(or $(BUDGET),60) config.sampler.upsample_steps=4

clean: ## remove what the demo made
	rm -rf '$(OUT)'
