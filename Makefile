# Everything works on a fresh machine with Python 3.11+, make and a C compiler.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
# More than two cores: tests mostly wait for processes.
WORKERS ?= 3
PYTHON313 ?= python3.13
RUNTIME := 1.3.0
CHECKOV := 3.3.30

.PHONY: help setup demo test check format chaos faults fuzz functions-runtime bench containers costs checkov package lock clean

help:
	@echo "make demo    run the main job on made-up sessions"
	@echo "make test    run all tests"
	@echo "make check   lint, format check, strict types as on Linux, Windows and macOS"
	@echo "make chaos   a hundred kills while a fleet is shipped, two hundred of the agent"
	@echo "make functions-runtime  the function app in Microsoft's own worker (Python 3.13)"
	@echo "make fuzz    millions of mutated inputs"
	@echo "make faults  10,000 messages through a Cosmos DB that throttles and cuts; e2e on it"
	@echo "make bench   measure; writes build/bench.json"
	@echo "make containers  render the Cosmos DB containers for infra/"
	@echo "make costs   write docs/cost.md anew"
	@echo "make checkov scan infra/ with checkov, in an environment of its own"
	@echo "make package build what is deployed as the platform does, and start the app from it"
	@echo "make setup   only make the virtual environment"
	@echo "make format  format the code"
	@echo "make lock    renew the pinned dependencies"

setup: $(READY)

$(READY): requirements-dev.txt pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "sessionferry needs Python 3.11 or newer; name one with PYTHON=…")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.txt
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

demo: $(READY)
	$(BIN)/ferry demo

test: $(READY)
	$(BIN)/python -m pytest -n $(WORKERS) --dist worksteal

check: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/mypy --platform win32 --cache-dir .mypy_cache/win32
	$(BIN)/mypy --platform darwin --cache-dir .mypy_cache/darwin

format: $(READY)
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

chaos: $(READY)
	$(BIN)/python -m pytest -m slow tests/chaos -s

faults: $(READY)
	$(BIN)/python -m pytest -m slow tests/integration/test_cosmos_faults.py
	FERRY_TEST_STORE=cosmos $(BIN)/python -m pytest tests/e2e/test_ferry.py

# Microsoft's worker library runs the app here as it does on the platform; it needs Python 3.13.
functions-runtime: $(READY)
	$(PYTHON313) -m venv build/functions-runtime
	build/functions-runtime/bin/python -m pip install --quiet --disable-pip-version-check -r requirements.txt azure-functions-runtime==$(RUNTIME)
	FERRY_RUNTIME_PYTHON=$(CURDIR)/build/functions-runtime/bin/python $(BIN)/python -m pytest -rA tests/integration/test_functions_runtime.py

fuzz: $(READY)
	PYTHONPATH=tests $(BIN)/python -m fuzz

bench: $(READY)
	$(BIN)/python -m tests.benchmarks

containers: $(READY)
	$(BIN)/python -m sessionferry.store.cosmos.containers > infra/cosmos-containers.json

costs: $(READY)
	$(BIN)/python tools/cost_model.py --write

package: $(READY)
	$(BIN)/python -m pytest -m slow tests/integration/test_package.py

checkov:
	$(PYTHON) -m venv build/checkov
	build/checkov/bin/python -m pip install --quiet --disable-pip-version-check checkov==$(CHECKOV)
	build/checkov/bin/checkov --framework bicep --directory infra --skip-download --quiet --soft-fail --output json | $(PYTHON) tools/checkov_report.py

# requirements.txt is what the Function App installs: exactly the dependencies of pyproject.toml.
lock: $(READY)
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --no-annotate --quiet --upgrade pyproject.toml -o requirements.txt
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --no-annotate --quiet --upgrade pyproject.toml --all-extras --group dev -c requirements.txt -o requirements-dev.txt

clean:
	rm -rf $(VENV) build .pytest_cache .mypy_cache .ruff_cache
