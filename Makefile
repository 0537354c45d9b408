.DEFAULT_GOAL := help
SHELL := /bin/bash
PYTHON ?= python3
SCOPE ?= default
BIN := .venv/bin

.PHONY: help run test mutants ui bench lint lock sbom audit reference status down

help: ## list the targets
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):.*## (.*)/  make \1\t\2/' | expand -t 16

.venv/runtime: requirements.lock pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { echo "Python 3.11 or newer is needed; set PYTHON=python3.11" >&2; exit 1; }
	@echo "Installing the environment into .venv (about 3 minutes, 2.8 GB; once) ..."
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/pip install --quiet --no-deps -r requirements.lock
	@$(BIN)/pip install --quiet --no-deps -e .
	@touch $@

.venv/test: .venv/runtime requirements-test.lock
	@$(BIN)/pip install --quiet --no-deps -r requirements-test.lock
	@touch $@

run: .venv/runtime ## the whole path on the full synthetic set: load, QC, cohorts, features, model, endpoint, drift (SCOPE=name|all)
	@$(BIN)/e2i run --scope $(SCOPE)

# Compiled modules are kept: every process of the tests would compile all of them anew.
test: .venv/test ## the whole test suite
	@env -u PYTHONDONTWRITEBYTECODE $(BIN)/python -m pytest -n logical --maxprocesses 4 --no-loadscope-reorder $(ARGS)

mutants: .venv/test ## plant defects one at a time and show which of them the tests notice (ARGS="--only seals")
	@$(BIN)/python tests/mutants.py $(ARGS)

ui: .venv/runtime ## Dagster UI and MLflow UI in the foreground, services running again; Ctrl-C stops the UIs
	@$(BIN)/e2i ui

bench: .venv/test ## all benchmarks; renders benchmarks/RESULTS.md
	@$(BIN)/python benchmarks/run.py

lint: .venv/test ## ruff, pyright, and whether the definitions load
	@$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/pyright && $(BIN)/dagster definitions validate

lock: .venv/test ## resolve the dependency locks again
	@$(BIN)/python -m pip install --quiet uv
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header pyproject.toml -o requirements.lock
	@$(BIN)/uv pip compile --quiet --universal --python-version 3.11 --no-annotate --no-header --extra test -c requirements.lock pyproject.toml -o requirements-test.lock

# Tools of their own environment: they are no part of what they describe.
.venv/audit/bin/cyclonedx-py:
	@$(PYTHON) -m venv .venv/audit
	@.venv/audit/bin/pip install --quiet cyclonedx-bom==7.5.0 pip-audit==2.10.1

sbom: .venv/audit/bin/cyclonedx-py ## CycloneDX bill of materials of requirements.lock into build/sbom.json
	@mkdir -p build
	@.venv/audit/bin/cyclonedx-py requirements requirements.lock --pyproject pyproject.toml --output-reproducible --of JSON --sv 1.6 -o build/sbom.json

audit: .venv/audit/bin/cyclonedx-py ## known vulnerabilities of requirements.lock; fails when the database of advisories does not answer
	@.venv/audit/bin/pip-audit --requirement requirements.lock --no-deps --disable-pip --strict --vulnerability-service osv

reference: .venv/runtime ## write docs/reference from the code
	@$(BIN)/python -m commands.reference

status: .venv/runtime ## what was made, what runs
	@$(BIN)/e2i status

down: .venv/runtime ## stop the services and the embedded database
	@$(BIN)/e2i down
