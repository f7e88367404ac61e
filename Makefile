# Every target first sets up a virtual environment with the pinned, tested versions.

PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
EXTRAS := models,plot,blackbox,datasets
CODE := hf_fingerprint tests examples docs hatch_build.py
DATA := docs/results/data
TIMINGS ?= --durations=10
# Runs all tests of a file in one process, so that its fixtures are made once; files run in the order of their names.
PYTEST := OMP_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder $(TIMINGS)

.PHONY: demo test test-fast test-slow test-versions docs results style quality bench evaluate reproduce clean

$(VENV)/installed: pyproject.toml constraints.txt hatch_build.py $(wildcard hf_fingerprint/_native*.[ch])
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[dev]'
	touch $@

demo: $(VENV)/installed
	$(BIN)/python -m examples.demo --out demo_output

test: $(VENV)/installed quality
	$(PYTEST) -m "not slow and not docs"

# Two to three minutes, for every day.
test-fast: $(VENV)/installed
	$(PYTEST) -m "not slow and not docs and not integration"

# Before a release: slow tests, which rarely fail, and ten times as many examples of each property.
test-slow: $(VENV)/installed
	$(PYTEST) -m "slow or hypothesis" --hypothesis-profile thorough

# In two more environments, each with another torch: several GB each.
test-versions: .venv-lowest/installed .venv-newest/installed
	for each in lowest newest; do .venv-$$each/bin/python -m tests.smoke || exit 1; done

.venv-lowest/installed: pyproject.toml constraints-lowest.txt
	$(PYTHON) -m venv --clear .venv-lowest
	.venv-lowest/bin/python -m pip install --quiet --constraint constraints-lowest.txt --editable '.[$(EXTRAS)]'
	touch $@

.venv-newest/installed: pyproject.toml
	$(PYTHON) -m venv --clear .venv-newest
	.venv-newest/bin/python -m pip install --quiet --upgrade --editable '.[$(EXTRAS)]'
	touch $@

# Warnings are errors, references without a target among them.
# Fills the tables of docs/results from the JSON that the benchmarks wrote.
results: $(VENV)/installed
	$(BIN)/python -m examples.results

# Builds the documentation, with warnings as errors, and runs its code blocks, the notebooks and the examples.
docs: $(VENV)/installed
	OMP_NUM_THREADS=1 $(BIN)/sphinx-build -q -E -W --keep-going -n -b html docs docs/_build/html
	$(PYTEST) --dist load -m "docs and not slow"

quality: $(VENV)/installed
	$(BIN)/ruff check $(CODE)
	$(BIN)/ruff format --check $(CODE)
	$(BIN)/mypy

style: $(VENV)/installed
	$(BIN)/ruff check --fix $(CODE)
	$(BIN)/ruff format $(CODE)

# These three write the JSON of the results pages; `make results` then fills their tables.
bench: $(VENV)/installed
	for part in help speed memory scoring hub robustness; do \
		$(BIN)/python -m examples.benchmarks.overview --parts $$part --out bench_output --results $(DATA)/$$part.json || exit 1; \
	done
	$(BIN)/python -m examples.benchmarks.training_steps --results $(DATA)/training-steps.json
	$(BIN)/python -m examples.benchmarks.verdicts --out bench_output/verdicts --results $(DATA)/verdicts.json
	$(BIN)/python -m examples.benchmarks.fuzz_readers --count 100000 --results $(DATA)/readers.json
	$(BIN)/python -m examples.benchmarks.layouts --out bench_output/layouts --results $(DATA)/layouts.json
	$(BIN)/python -m examples.benchmarks.reading_speed --out bench_output/reading_speed --results $(DATA)/reading-speed.json
	$(BIN)/python -m examples.benchmarks.native_passes --out bench_output/native_passes --results $(DATA)/native-passes.json
	$(BIN)/python -m examples.benchmarks.large_model --out bench_output/large_model --results $(DATA)/large-model.json
	$(BIN)/python -m examples.benchmarks.depth --out bench_output/depth --results $(DATA)/depth.json
	$(BIN)/python -m examples.benchmarks.strength lite0 resnet vit --out bench_output/strength --results $(DATA)/strength.json
	$(BIN)/python -m pip install --quiet --no-deps torch-pruning==1.6.1
	$(BIN)/python -m examples.benchmarks.channels --out bench_output/channels --results $(DATA)/channels.json
	$(BIN)/python -m examples.benchmarks.tampered_rows --out bench_output/vaults --results $(DATA)/tampered.json
	$(BIN)/python -m examples.benchmarks.hostile_merges --results $(DATA)/merges.json
	$(BIN)/python -m examples.benchmarks.vault_kills --results $(DATA)/kills.json
	$(BIN)/python -m examples.benchmarks.vault_disks --results $(DATA)/disks.json

evaluate: $(VENV)/installed
	for model in lite0 lite2 resnet vit; do $(BIN)/python -m examples.benchmarks.attacks $$model || exit 1; done
	$(BIN)/python -m examples.benchmarks.schemes resnet
	$(BIN)/python -m examples.benchmarks.attacks_table bench_output/attacks lite0 lite2 resnet vit --schemes bench_output/schemes/resnet --results $(DATA)/attacks.json

reproduce: $(VENV)/installed
	$(BIN)/python -m examples.reproduction.run --out reproduction_output --results $(DATA)/deepmarks.json

clean:
	rm -rf $(VENV) .venv-lowest .venv-newest docs/_build demo_output bench_output reproduction_output .pytest_cache .mypy_cache .ruff_cache .hypothesis
