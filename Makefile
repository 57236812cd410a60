# make train   train the quick start (again: it goes on)     make test       the tests, a few minutes
# make lint    ruff and mypy                                 make test-slow  the long ones
# make bench   the figures in the README                     make chaos      a thousand kills during saves
# make test-browser  the notebook in chromium (apt-get install chromium)     make pictures  the README's, from a run
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=

.PHONY: train test test-slow test-browser pictures lint bench chaos clean

train: $(VENV)/run
	$(BIN)/python -m kit train $(ARGS)

test: $(VENV)/dev
	$(BIN)/python -m pytest -m "not slow and not gpu and not browser" $(ARGS)

test-slow: $(VENV)/dev
	$(BIN)/python -m pytest -m "slow and not gpu" $(ARGS)

test-browser: $(VENV)-kaggle/done
	$(BIN)/python -m pytest -m browser $(ARGS)

pictures: $(VENV)/dev
	$(BIN)/python tests/pictures.py docs

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: $(VENV)/dev
	$(BIN)/python tests/chaos.py $(ARGS)

clean:
	rm -rf $(VENV) $(VENV)-kaggle

$(VENV)/run: requirements.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet -r requirements.txt
	touch $@

$(VENV)/dev: $(VENV)/run requirements-dev.txt
	$(BIN)/python -m pip install --quiet -r requirements-dev.txt
	touch $@

# Kaggle's versions of what shows notebooks; torch and the rest come from the environment behind it.
$(VENV)-kaggle/done: $(VENV)/dev tests/kaggle.txt
	$(BIN)/python -m venv --clear $(VENV)-kaggle
	$(VENV)-kaggle/bin/python -m pip install --quiet -r tests/kaggle.txt
	$(BIN)/python -c 'import sysconfig; print(sysconfig.get_path("purelib"))' > $(VENV)-kaggle/behind.pth
	mv $(VENV)-kaggle/behind.pth $(VENV)-kaggle/lib/python*/site-packages/
	touch $@

$(VENV)/bench: $(VENV)/run benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	touch $@

bench: $(VENV)/bench
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/saving.py
	$(BIN)/python benchmarks/cost.py
