# `make demo` and `make test` set up all they need: a virtual environment with the pinned, tested versions.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := models,plot,blackbox,datasets
CODE := hf_fingerprint tests examples
TIMINGS ?= --durations=10

.PHONY: demo test test-versions style quality bench evaluate reproduce clean

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python examples/demo.py --out demo_output

test: $(VENV)/installed quality
	OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 $(TIMINGS)

# In environments of their own, with torches of their own: several GB each.
test-versions: .venv-lowest/installed .venv-newest/installed
	for each in lowest newest; do .venv-$$each/bin/python tests/smoke.py || exit 1; done

.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[$(EXTRAS)]'
	touch $@

.venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --editable '.[$(EXTRAS)]'
	touch $@

quality: $(VENV)/installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

style: $(VENV)/installed
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

bench: $(VENV)/installed
	$(BIN)/python examples/bench.py --out bench_output
	$(BIN)/python examples/bench_training.py
	$(BIN)/python examples/bench_verdicts.py --out bench_output/verdicts
	$(BIN)/python examples/fuzz_readers.py --count 100000 --out bench_output/fuzz
	$(BIN)/python examples/bench_tampered_rows.py --out bench_output/vaults
	$(BIN)/python examples/bench_hostile_merges.py
	$(BIN)/python examples/bench_vault_kills.py
	$(BIN)/python examples/bench_vault_disks.py

evaluate: $(VENV)/installed
	for model in lite0 lite2 resnet vit; do $(BIN)/python examples/bench_attacks.py $$model || exit 1; done
	$(BIN)/python examples/bench_schemes.py resnet
	$(BIN)/python examples/attacks_table.py bench_output/attacks lite0 lite2 resnet vit --schemes bench_output/schemes/resnet

reproduce: $(VENV)/installed
	$(BIN)/python examples/reproduction.py --out reproduction_output

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest demo_output bench_output reproduction_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
