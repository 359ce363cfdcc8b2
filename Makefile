# Needs Python 3.11 or newer; everything else is installed into .venv.
PYTHON ?= python3
BIN := .venv/bin
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile # one thread each: two processes share the cores, and each file makes its runs once

.PHONY: demo lab quick test lint site bench race clean

demo: .venv/installed  ## the whole pipeline on embedded tissue, results in runs/demo
	$(BIN)/python -m pfiles demo --out runs/demo

lab: .venv/installed  ## JupyterLab in the browser, on the notebook to begin with
	$(BIN)/jupyter lab start_here.ipynb

quick: lint  ## style, types and the tests that need no training and no kernel: under a minute on two cores
	$(PYTEST) -m "not slow"

test: lint  ## all tests
	$(PYTEST)

lint: .venv/installed  ## style and spelling of code, docs and notebooks, which hold no outputs; types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/typos
	$(BIN)/nbstripout --verify *.ipynb clusters_14/*.ipynb
	$(BIN)/mypy

site: .venv/installed  ## docs, API and, after `make demo`, its executed notebooks as web pages in runs/site
	$(BIN)/python docs/site/build.py --out runs/site

bench: .venv/installed .peers/installed  ## speed and memory beside the published way and other libraries; JSON in benchmarks/results
	$(BIN)/python -m benchmarks
	PYTHONPATH=.peers $(BIN)/python -m benchmarks.peers

race: .venv/installed  ## recipes against each other on embedded tissue, by the time of one core; hours, can be stopped and goes on
	$(BIN)/python -m experiments.race --data embedded --out runs/race

clean:  ## remove the environment, caches and what `make demo` and `make site` made
	rm -rf .venv .peers runs/demo runs/site .pytest_cache .ruff_cache .mypy_cache

.venv/installed: requirements.txt requirements-dev.txt constraints.txt
	$(PYTHON) -c "import sys; sys.exit(None if sys.version_info >= (3, 11) else 'Python 3.11 or newer is needed: make PYTHON=python3.11')"
	$(PYTHON) -m venv .venv
	$(BIN)/python -m pip install --quiet --requirement requirements-dev.txt --constraint constraints.txt
	touch $@

.peers/installed: .venv/installed benchmarks/peers.txt  # never seen by pfiles itself
	$(BIN)/python -m pip install --quiet --no-deps --upgrade --target .peers --requirement benchmarks/peers.txt
	touch $@
