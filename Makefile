# make demo        install into .venv and run the examples: TLS, publish and subscribe
# make test        install and run all tests, interop included: ARGS='-k tls' some of them, ARGS=-n0 in one process
# make test-fast   run the tests that take little time and need no other program
# make coverage    measure what those reach in sp/, and fail where it is too little
# make lint        ruff, mypy, pyright
# make bench       measure, side by side with pynng and pyzmq
PYTHON ?= python3
BIN := .venv/bin
# As many processes as there are cores; the tests of a file stay together, since they may share what is costly.
PYTEST := $(BIN)/python -m pytest -n auto --dist loadfile

.PHONY: demo test test-fast coverage lint bench clean

# One stamp for each set of extras; a change of pyproject.toml installs again.
.venv/installed-%: pyproject.toml
	@test -x $(BIN)/python || $(PYTHON) -m venv .venv
	@$(BIN)/python -m pip install --quiet --disable-pip-version-check --editable '.$(if $(filter run,$*),,[$*])'
	@touch $@

demo: .venv/installed-run
	@$(BIN)/python -m examples.demo

test: .venv/installed-test
	@$(PYTEST) $(ARGS)

test-fast: .venv/installed-test
	@$(PYTEST) tests --ignore tests/properties -m 'not slow' $(ARGS)

coverage: .venv/installed-test
	@.ci/coverage $(ARGS)

lint: .venv/installed-lint .venv/installed-test
	@$(BIN)/ruff check .
	@$(BIN)/ruff format --check .
	@$(BIN)/mypy
	@$(BIN)/pyright --pythonpath $(BIN)/python

bench: .venv/installed-bench
	@$(BIN)/python -m bench $(ARGS)

clean:
	rm -rf .venv dist build
