# Needs only Python 3.11 or newer and make. `make PYTHON=python3.12 test` picks one of several.

SHELL := /bin/bash
.SHELLFLAGS := -eu -o pipefail -c
.DEFAULT_GOAL := help
MAKEFLAGS += --no-print-directory --no-builtin-rules

PYTHON ?=
VENV ?= .venv
ARGS ?=
MINUTES ?= 10
DELIVERIES ?= 10000000
CONTRACT_SECONDS ?= 120
BIN := $(VENV)/bin

.PHONY: help demo up test test-browser screenshots test-faults test-contract openapi soak mutations lint types format bench bench-quick bench-growth bench-pages soak-database bench-trace bench-compare clean venv

help: ## This list
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-12s %s\n", $$1, $$2 }' $(firstword $(MAKEFILE_LIST))

demo: venv ## Run it all against local receivers; ARGS=--once ends by itself
	@$(BIN)/python manage.py demo $(ARGS)

up: venv ## Start database, broker, web, workers and beat; Ctrl-C ends it
	@$(BIN)/python manage.py up $(ARGS)

test: venv ## Run all tests. ARGS="-k circuit" picks some
	@$(BIN)/python -m pytest -n auto --dist loadgroup $(ARGS)

test-faults: venv ## Break every part for real; ARGS="-k broker" picks some
	@$(BIN)/python -m pytest -n 2 --maxschedchunk 1 --ds=tests.faults.settings tests/faults --report docs/reliability.md $(ARGS)

test-browser: venv ## The admin in the system's Chromium, with axe-core
	@$(BIN)/python -m pytest --ds=tests.browser.settings tests/browser $(ARGS)

screenshots: venv ## A picture of each page. ARGS="--only dashboard" takes some
	@$(BIN)/python -m tests.browser.screenshots $(ARGS)

test-contract: venv ## Two minutes of generated requests to the running API
	@$(BIN)/python -m tests.contract.run --seconds $(CONTRACT_SECONDS) $(ARGS)

openapi: venv ## Write docs/openapi.json again, after a change of the API
	@$(BIN)/python manage.py export_openapi_schema --api api.api.api --indent 2 --output docs/openapi.json

soak: venv ## Ten minutes of traffic: nothing grows. MINUTES=2 is less
	@$(BIN)/python -m pytest --ds=tests.faults.settings tests/faults/test_soak.py --soak $(MINUTES) --report docs/reliability.md $(ARGS)

mutations: venv ## Take guards out of a copy; a test must notice each
	@$(BIN)/python -m tests.faults.mutations --report docs/reliability.md

lint: venv ## Check style, formatting and the direction of imports
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --quiet --check .
	@$(BIN)/lint-imports --no-logo --no-cache

types: venv ## Check types
	@$(BIN)/mypy

format: venv ## Put the code into shape
	@$(BIN)/ruff check --quiet --fix .
	@$(BIN)/ruff format --quiet .

bench: venv ## Measure everything (11 minutes); ARGS="--only live": some
	@$(BIN)/python benchmarks/bench.py $(ARGS)
	@$(if $(ARGS),,$(BIN)/python benchmarks/bench.py --growth)

bench-quick: venv ## The same at a glance (2 minutes)
	@$(BIN)/python benchmarks/bench.py --quick $(ARGS)

bench-growth: venv ## Only the costs up to ten million deliveries
	@$(BIN)/python benchmarks/bench.py --growth $(ARGS)

bench-pages: venv ## The admin's pages beside ten million deliveries
	@$(BIN)/python benchmarks/pages.py $(ARGS)

soak-database: venv ## Ten million deliveries at full speed: no table grows (half an hour)
	@$(BIN)/python benchmarks/bench.py --soak $(DELIVERIES) $(ARGS)

bench-trace: venv ## Milliseconds of each step of one event. ARGS=--show: each call
	@$(BIN)/python benchmarks/steps.py $(ARGS)

bench-compare: venv ## Measure one backlog against another package
	@$(BIN)/python benchmarks/bench.py --only backlog $(ARGS)

clean: ## Remove what was installed and made here, with the data
	@$(or $(PYTHON),python3) tools/clean.py

venv:
	@PYTHON="$(PYTHON)" VENV="$(VENV)" bash tools/setup.sh
