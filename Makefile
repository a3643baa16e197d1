# make demo   install into .venv and run the main job
# make test   install and run all tests, interop included
# make lint   ruff, mypy, pyright
# make bench  measure, side by side with pynng and pyzmq
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test lint bench clean

# One stamp for each set of extras; a change of pyproject.toml installs again.
.venv/installed-%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(if $(filter run,$*),,[$*])'
	@touch $@

demo: .venv/installed-run
	@$(BIN)/python -m examples.demo

test: .venv/installed-test
	@$(BIN)/python -m pytest $(ARGS)

lint: .venv/installed-lint .venv/installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/installed-bench
	@$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf .venv dist build
