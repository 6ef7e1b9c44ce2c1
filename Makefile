SHELL := bash
.DEFAULT_GOAL := help
.PHONY: help setup setup-dev drill drills ui test test-fast test-long lint images bench lock clean

DR := .venv/bin/dr
RUN := .venv/bin/python -m
SOURCES := $(wildcard dr_pipelines assets sensors definitions.py tests benchmarks)
SETTINGS := $(if $(REPOSITORY),DR_LAB_REPOSITORY=$(REPOSITORY))
OPTIONS := $(if $(SIZE),--size $(SIZE)) $(if $(SEED),--seed $(SEED))
# Root has installed the software that the tests run against, and CI has it: there a test without it has failed.
STRICT := $(if $(or $(CI),$(filter 0,$(shell id -u))),--require-software)

help: ## these lines
	@sed -n 's/^\([a-z-]*\):[^#]*## /\1\t/p' $(MAKEFILE_LIST) | while IFS=$$'\t' read -r name text; do printf 'make %-10s %s\n' "$$name" "$$text"; done

setup: ## set up .venv; does nothing where it stands already
	@scripts/setup.sh

setup-dev:
	@scripts/setup.sh dev

drill: setup ## lose a database and bring it back, measured (REPOSITORY=s3|folder SIZE=50MB SEED=1)
	@$(SETTINGS) $(DR) drill database $(OPTIONS)

drills: setup ## ten drills, each killed at a random moment
	@$(SETTINGS) $(DR) drill database --times 10 $(OPTIONS)

ui: setup ## Dagster's UI on 127.0.0.1, with the lab's database behind it
	@$(DR) ui

test: setup-dev ## everything: software to test against, linters, all tests
	@scripts/test-software.sh
	@$(MAKE) --no-print-directory lint
	$(RUN) pytest $(STRICT)

test-fast: setup-dev ## the tests that take no more than some seconds each
	$(RUN) pytest -m "not slow"

test-long: setup-dev ## a hundred random kills, some twenty minutes (SEED=1 KILLS=100 MINUTES=40), told in docs/test-long.md
	@scripts/test-software.sh
	$(RUN) tests.faults.long $(if $(SEED),--seed $(SEED)) $(if $(KILLS),--kills $(KILLS)) $(if $(MINUTES),--minutes $(MINUTES))

lint: setup-dev ## ruff, mypy --strict, import-linter, shellcheck
	$(RUN) ruff check .
	$(RUN) ruff format --check .
	$(RUN) mypy $(SOURCES)
	.venv/bin/lint-imports --no-logo
	.venv/bin/shellcheck .ci/run scripts/*.sh

images: setup-dev ## photograph a drill in Dagster's UI into docs/images/
	@scripts/test-software.sh
	DR_PHOTOGRAPH=1 $(RUN) pytest $(STRICT) tests/browser

bench: setup-dev ## side by side with the field's tools; some minutes on an idle machine
	@scripts/test-software.sh
	$(RUN) benchmarks

lock: ## write requirements/*.txt anew from pyproject.toml (needs uv)
	@scripts/lock.sh

clean: ## remove .venv and what tools left here; state outside the checkout stays
	rm -rf .venv build dist .mypy_cache .ruff_cache .pytest_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
