# The commands of this repository; `make` lists them. CI calls the same ones.
PYTHON ?= python3
BIN := .venv/bin

.DEFAULT_GOAL := help
.PHONY: help setup demo rollback down report validate test test-all test-tools test-fast play lint format types lock clean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

setup:  ## make .venv with the pinned requirements (CUDA where there is a GPU; QLORA_DEVICE=cpu|cuda overrides; NO_DEV=1 leaves out tests and linters)
	@$(PYTHON) scripts/bootstrap.py $(if $(NO_DEV),--no-dev)

demo: setup  ## validate, train, evaluate, gate, publish, hot-load and ask: the whole flow on this machine
	@$(BIN)/python scripts/demo.py up

rollback:  ## deploy a second version of the demo's adapter, and roll it back
	@$(BIN)/python scripts/demo.py rollback

down:  ## stop the demo's servers
	@$(BIN)/python scripts/demo.py down

report:  ## open the demo's HTML report
	@$(BIN)/python scripts/demo.py report

validate: setup  ## check the repository's data as a pull request would
	@$(BIN)/python scripts/validate_data.py --adapter support-demo
	@$(BIN)/python scripts/validate_data.py --input data/training/support-ko.jsonl --eval-data data/eval/support-ko.jsonl --eval-data data/eval/general-ko.jsonl --eval-data data/eval/general-texts-ko.jsonl

test: lint test-fast  ## everything: linters, unit tests, tests with real servers, the whole flow
	@$(BIN)/python -m pytest -m integration
	@$(BIN)/python -m pytest -m e2e

test-all: test play  ## what `make test` runs, and the story of pull requests: some 20 minutes more

test-tools:  ## install the programs that tests look for and PyPI has not (Debian, Ubuntu)
	@packages="$$(command -v promtool >/dev/null || echo prometheus) $$(command -v nginx >/dev/null || echo nginx-light)"; \
	{ command -v chromium || command -v google-chrome; } >/dev/null || packages="$$packages chromium fonts-noto-cjk"; \
	[ -z "$${packages# }" ] || { sudo=$$([ "$$(id -u)" = 0 ] || echo sudo); \
	$$sudo apt-get update -qq && $$sudo apt-get install --yes -qq --no-install-recommends $$packages; }

test-fast: setup  ## unit tests (seconds)
	@$(BIN)/python -m pytest -n auto -m "not integration and not e2e and not play"

play: setup  ## the whole story of pull requests on GitHub Actions, with the real workflow files and no GitHub
	@$(BIN)/python -m pytest -m play -s tests/e2e/test_play.py

lint: setup  ## ruff and mypy; workflows: actionlint, zizmor, their schema, pins
	@$(BIN)/ruff check
	@$(BIN)/ruff format --check
	@$(BIN)/mypy
	@$(BIN)/actionlint
	@$(BIN)/zizmor --offline --quiet --persona=auditor --strict-collection --no-progress .github
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-workflows .github/workflows/*.yaml
	@$(BIN)/check-jsonschema --quiet --builtin-schema vendor.github-issue-forms .github/ISSUE_TEMPLATE/bad-answer.yml .github/ISSUE_TEMPLATE/new-adapter.yml
	@$(BIN)/pinact run --check --fix=false --no-api

format: setup  ## let ruff mend what it can
	@$(BIN)/ruff check --fix
	@$(BIN)/ruff format

types: setup  ## write the typed shapes of documents from configs/schemas
	@$(BIN)/python tests/generate_shapes.py

lock:  ## resolve the requirements*.in files; UPGRADE=1 takes the newest versions
	@$(PYTHON) scripts/bootstrap.py --lock $(if $(UPGRADE),--upgrade)

clean:  ## remove what was made here: .venv, runs, caches (the base model's cache stays)
	rm -rf .venv .demo runs .mypy_cache .ruff_cache .pytest_cache .hypothesis
