# `make` alone lists the targets. Each of them sets .venv up first when it has to.
SHELL := /bin/bash
.DEFAULT_GOAL := help
.PHONY: help setup test tests demo demo-full lint clean

VENV ?= .venv
PYTHON ?=
TORCH ?=
DATA ?=
MODALITY ?= $(if $(DATA),speech,all)
export VENV PYTHON TORCH
DEMO = $(VENV)/bin/python examples/demo/run.py "$(MODALITY)" $(if $(DATA),--data "$(DATA)")

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' Makefile
	@echo "  PYTHON=python3.12 picks the interpreter, TORCH=torch==2.9.1 another torch, DATA=/path/to/wavs your recordings"

setup: ## make .venv with everything, or nothing if it is up to date
	@scripts/setup_env.sh

test: setup ## style check and every test, at most 15 minutes on 2 cores
	@scripts/run_tests.sh

tests: test # a folder has that name, so make would find nothing to do

demo: setup ## pre-train, fine-tune against from scratch, one table; MODALITY=speech|speech2|vision|text for one of them, at most 10 minutes on 2 cores
	@$(DEMO)

demo-full: setup ## the longer recipe: five languages, three label budgets, three seeds
	@$(VENV)/bin/python examples/demo/run.py speech --full

lint: setup ## style check alone
	@$(VENV)/bin/ruff check .

clean: ## remove .venv and build products, keep data and results
	rm -rf "$(VENV)" build *.egg-info .pytest_cache .ruff_cache
