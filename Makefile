# `make demo` and `make test` work on a fresh machine with python3 (3.11 or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MARK := $(VENV)/.installed

.PHONY: demo test test-slow test-exhaustive lint clean

demo: $(MARK)
	$(BIN)/python -m fusedrnn.demo

test: $(MARK) lint
	$(BIN)/pytest -m "not slow and not exhaustive" -n 2

test-slow: $(MARK)
	$(BIN)/pytest -m slow -n 2

test-exhaustive: $(MARK)
	$(BIN)/pytest -m exhaustive -n 2

lint: $(MARK)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(MARK): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch and the rest into $(VENV): one to two minutes."
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt --config-settings editable_mode=compat -e '.[demo,test]'
	touch $(MARK)

clean:
	rm -rf $(VENV) build dist *.egg-info
