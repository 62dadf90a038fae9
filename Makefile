# `make` lists what there is. Every target that needs the environment makes it first.

# The first interpreter on the path that is new enough; `make setup PYTHON=…` names another.
PYTHON ?= $(shell for p in python3 python3.11 python3.12 python3.13 python3.14 python; do \
	"$$p" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo "$$p" && break; done)
BIN := .venv/bin
READY := .venv/.ready
PACKAGES := service workers rebase migrations examples scripts
N ?= 50
JOBS ?= 2

.DEFAULT_GOAL := help
.DELETE_ON_ERROR:
.PHONY: help setup run demo test lint format bench chaos docs lock

help: ## list the targets
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "  make %-8s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(READY) ## create .venv with everything in it, and nothing anywhere else

# The lock holds exact versions but no builds: pip takes the CPU or the CUDA wheel of torch from where it is told to look.
$(READY): pyproject.toml requirements.lock
	@test -n "$(PYTHON)" || { echo "Rebase needs Python 3.11 or newer: make setup PYTHON=/path/to/python3" >&2; exit 1; }
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet -c requirements.lock -e '.[worker,datasets,evaluation,real-models]' --group dev
	@rm -rf rebase_lora.egg-info build
	@touch $@

run: $(READY) ## start the stack, convert the bundled example, keep serving until Ctrl-C (PORT=8000)
	@$(BIN)/rebase demo --serve $(if $(PORT),--port $(PORT))

demo: $(READY) ## the same conversion as a check: exits 0 when all is as promised, else 1
	@$(BIN)/rebase demo

test: lint ## everything that CI runs: lint, then every test (JOBS=2 files at a time)
	$(BIN)/python -m pytest --numprocesses $(JOBS) --dist loadfile --no-loadscope-reorder

lint: $(READY) ## ruff, mypy --strict, import contracts
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy --strict $(PACKAGES)
	$(BIN)/lint-imports

format: $(READY) ## rewrite the code in the project's format
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

bench: $(READY) ## one benchmark: make bench NAME=convert (without NAME: which there are)
	@test -n "$(NAME)" || { echo "NAME is one of:"; grep -l __main__ benchmarks/*.py | sed 's|.*/\(.*\)\.py|  \1|'; exit 2; }
	$(BIN)/python -m benchmarks.$(NAME) $(ARGS)

chaos: $(READY) ## kill the worker N times at random moments and count what is lost: make chaos N=50
	$(BIN)/python -m benchmarks.chaos --runs $(N)

docs: $(READY) ## write docs/reference from the code: methods, commands, settings
	$(BIN)/python scripts/docs.py

lock: $(READY) ## write requirements.lock from what is installed in .venv
	$(BIN)/python scripts/lock.py > requirements.lock.new
	mv requirements.lock.new requirements.lock
