# Two commands do everything on a fresh machine: `make demo` and `make test`.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
PINS := --constraint constraints.txt
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest --numprocesses 2 --dist loadfile --no-loadscope-reorder

.PHONY: demo test newest newest-test bench bench-gpu kills fuzz reproducible experiments compare page install clean

demo: $(VENV)/installed  ## the whole graph on a small data set made here, offline
	$(BIN)/showtell demo

test: $(VENV)/installed  ## style, types and tests
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(PYTEST)

newest:  ## the tests with the newest release of every package, in an environment of its own
	$(MAKE) install VENV=.venv-newest PINS=
	$(MAKE) newest-test VENV=.venv-newest

newest-test:
	$(PYTEST) --ignore tests/test_install.py

kills: $(VENV)/installed  ## kill runs at random moments, resume them, compare the bytes; KILLS='--count 40 --seed 0'
	$(BIN)/python -m tests.campaigns.kills $(KILLS)

fuzz: $(VENV)/installed  ## mutated files for every parser; FUZZ='--seconds 600 --seed 7'
	$(BIN)/python -m tests.campaigns.fuzz $(FUZZ)

reproducible: $(VENV)/installed  ## runs from scratch, on other cores and threads: the same bytes?
	$(BIN)/python -m tests.campaigns.reproducible

bench: $(VENV)/installed  ## the speed of the hot paths beside their limits; BENCH='--images images.zip'
	$(BIN)/python -m benchmarks $(BENCH)

bench-gpu: $(VENV)/installed  ## the same on a GPU, in seven minutes; BENCH='training scst --profiles build/profiles'
	$(BIN)/python -m benchmarks.gpu $(BENCH)

compare: $(VENV)/installed  ## the demo at two commits: did it get worse? BASE=main HEAD=HEAD
	.ci/compare-demo $(or $(BASE),main) $(or $(HEAD),HEAD)

page: $(VENV)/installed  ## build/report.html: this page with another run's scores beside it; BASE=main
	mkdir -p build
	git show $(or $(BASE),HEAD):./reports/metrics.json > build/base.json
	$(BIN)/showtell report --base build/base.json --out build/report.html

install: $(VENV)/installed

experiments: $(VENV)/installed  ## params that vary, and scores, best first; EXP=--all-commits for all there are
	$(BIN)/dvc exp show --only-changed --hide-workspace --sort-by cider --sort-order desc \
	  --keep 'bleu_4|cider|rouge_l|length' \
	  --drop '.*/|Created|Executor|bleu_[123]|unique_captions|vocabulary_used' $(EXP)

$(VENV)/installed: pyproject.toml constraints.txt
	$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11) and "showtell needs Python 3.11 or later: make PYTHON=python3.11 ...")'
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet $(PINS) --editable '.[dvc,dev]'
	touch $@

clean:
	rm -rf $(VENV) .venv-newest .demo build *.egg-info
