# 'make help' lists what there is. Everything happens in .venv, which make creates itself.
#   PYTHON=python3.12   the Python to create it with
#   ARGS="--seed 3"     more arguments for the command behind the target
# pip takes its own settings (index, proxy, certificates) from PIP_* variables or its files.

PYTHON ?= python3
ARGS ?=

VENV := .venv
BIN := $(VENV)/bin
PIP_INSTALL := $(BIN)/python -m pip install --quiet --disable-pip-version-check
LOCK := $(BIN)/uv pip compile --quiet --universal --python-version 3.11 --generate-hashes \
	--no-annotate --no-emit-index-url --no-emit-find-links \
	--custom-compile-command "make lock" pyproject.toml

.DEFAULT_GOAL := help
.PHONY: help demo test check bench bench-policy faults console-figures dashboard dashboard-figures lock secrets clean

help: ## Show this list
	@awk -F ': .*## ' '/^[a-z-]+:.*## / {printf "  make %-18s %s\n", $$1, $$2}' $(firstword $(MAKEFILE_LIST))

demo: $(VENV)/.demo ## Compare plain Celery with learned routing on 12 virtual GPUs (4 minutes)
	$(BIN)/owl demo $(ARGS)

test: $(VENV)/.dev ## Run the tests, against real servers that they start
	$(BIN)/python -m pytest $(ARGS)

check: $(VENV)/.dev ## Check style, types and the direction of imports
	$(BIN)/ruff check
	$(BIN)/ruff format --check
	$(BIN)/mypy
	$(BIN)/lint-imports

bench: $(VENV)/.dev ## Measure what routing adds to apply_async
	$(BIN)/python -m benchmarks.overhead $(ARGS)

bench-policy: $(VENV)/.dev ## Compare the policies in the simulator
	$(BIN)/python -m benchmarks.policy $(ARGS)

console-figures: $(VENV)/.dev ## Take the pictures of the console from a run of the demo
	$(BIN)/python -m benchmarks.console_figures $(ARGS)

dashboard: $(VENV)/.dev ## Write Grafana's dashboard from its source
	$(BIN)/python -m grafana.source

dashboard-figures: $(VENV)/.dev ## Draw the dashboard from a real run (10 minutes, needs npm)
	$(BIN)/python -m grafana.render $(ARGS)

faults: $(VENV)/.dev ## Strike real workers, controllers and servers, and account for every task
	$(BIN)/python -m benchmarks.faults --json build/faults.json \
		--page docs/benchmarks/faults.md $(ARGS)

lock: $(VENV)/.dev ## Pin the newest versions that pyproject.toml allows in requirements/
	$(PIP_INSTALL) 'uv>=0.8'
	$(LOCK) --upgrade --all-extras --group build --group test --group check -o requirements/dev.txt
	$(LOCK) --constraints requirements/dev.txt --extra demo --extra embedded --group build \
		-o requirements/demo.txt
	$(LOCK) --constraints requirements/dev.txt --extra flower --extra postgres --group build \
		-o requirements/image.txt

secrets: ## Make the passwords and the token that docker-compose.yml needs, once
	@mkdir -p -m 0700 secrets
	@# Readable inside a container, whose user is another; the folder keeps others on this host out.
	@for name in api_token flower_password grafana_password postgres_password redis_password; do \
		test -s secrets/$$name || \
			$(PYTHON) -c 'import secrets; print(secrets.token_hex(24))' > secrets/$$name || exit 1; \
		chmod 0444 secrets/$$name; \
	done
	@echo "Passwords and API token are in secrets/."

clean: ## Delete the environment and whatever the tools have left
	rm -rf $(VENV) build dist demo-output .hypothesis .import_linter_cache .mypy_cache \
		.pytest_cache .ruff_cache
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

# The demo needs a third of the packages; the versions are the same in both.
$(VENV)/.demo: requirements/demo.txt pyproject.toml | $(BIN)/python
	@echo "Installing pinned packages into $(VENV): a minute, once."
	@$(PIP_INSTALL) --require-hashes --requirement $<
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(VENV)/.dev: requirements/dev.txt pyproject.toml | $(BIN)/python
	@echo "Installing pinned packages into $(VENV): a minute, once."
	@$(PIP_INSTALL) --require-hashes --requirement $<
	@$(PIP_INSTALL) --no-deps --no-build-isolation --editable .
	@touch $@

$(BIN)/python:
	@command -v $(PYTHON) >/dev/null || { \
		echo "There is no $(PYTHON): install Python 3.11 or newer, or name one: make PYTHON=..." >&2; \
		exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || { \
		echo "$$($(PYTHON) --version) is too old, 3.11 is needed: name a newer one: make PYTHON=..." >&2; \
		exit 1; }
	@$(PYTHON) -m venv $(VENV) || { \
		rm -rf $(VENV); \
		echo "The environment could not be made: install Python's venv module (python3-venv)." >&2; \
		exit 1; }
