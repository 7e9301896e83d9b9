# `make demo` and `make test` work on a fresh machine with python3 (3.11 or newer) and make.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
MARK := $(VENV)/.installed

OLD_TRITON := .triton-3.6.0

.PHONY: demo test test-slow test-exhaustive compile-checks bench-quick lint clean

demo: $(MARK)
	$(BIN)/python -m fusedrnn.demo

test: $(MARK) lint
	$(BIN)/pytest -m "not slow and not exhaustive" -n 2

test-slow: $(MARK)
	$(BIN)/pytest -m "slow and not exhaustive" -n 2 --dist loadgroup

test-exhaustive: $(MARK)
	$(BIN)/pytest -m exhaustive -n 2 --dist loadgroup

# The kernels of the quick rows on the newest Triton and on the oldest that is supported; no GPU is needed.
compile-checks: $(MARK) $(OLD_TRITON)/.installed
	$(BIN)/python -m bench compile --quick
	PYTHONPATH=$(OLD_TRITON) $(BIN)/python -m bench compile --quick

# Against peers, under three minutes on two cores; fails where a ratio is below its bound.
bench-quick: $(MARK)
	$(BIN)/python -m bench cpu --quick --guard

$(OLD_TRITON)/.installed:
	$(BIN)/pip install --disable-pip-version-check -q --no-deps --target $(OLD_TRITON) triton==3.6.0
	touch $@

lint: $(MARK)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

$(MARK): pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	@echo "Installing torch and the rest into $(VENV): one to two minutes."
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt --config-settings editable_mode=compat -e '.[demo,train,test]'
	touch $(MARK)

clean:
	rm -rf $(VENV) $(OLD_TRITON) build dist *.egg-info
