# make train   train the quick start (again: it goes on)     make test       the tests, a few minutes
# make lint    ruff and mypy                                 make test-slow  the long ones
# make bench   the figures in the README                     make chaos      kills, failing disks, failing stores
# make test-browser  the notebook in chromium (apt-get install chromium)     make pictures  the README's, from a run
# make gpu     exactness and figures on a GPU, in the environment of PYTHON
# make twin    the notebook on the versions of Kaggle's image, for which a Python 3.12 is needed
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
ARGS ?=
TWIN ?= .venv-twin
JOBS ?= 2
MISSING = "$(shell grep -o '^ultralytics[^ ]*' requirements.txt)" ultralytics-thop ultralytics-platform isal  # not on Kaggle's image
PYTHONS := python3.12 $(wildcard $(HOME)/.pyenv/versions/3.12.*/bin/python3.12) /usr/bin/python3.12
works = $(shell $(1) -c "import ensurepip, venv" 2>/dev/null && echo $(1))
PYTHON312 ?= $(firstword $(foreach python,$(PYTHONS) $(shell uv python find 3.12 2>/dev/null),$(call works,$(python))))

.PHONY: train test test-slow test-browser twin pictures lint bench chaos gpu clean

train: $(VENV)/run
	$(BIN)/python -m kit train $(ARGS)

test: $(VENV)/dev
	$(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not slow and not gpu and not browser and not twin" $(ARGS)

test-slow: $(VENV)/dev $(VENV)/bench
	$(BIN)/python -m pytest -n $(JOBS) --dist worksteal -m "slow and not gpu and not browser and not twin" $(ARGS)

test-browser: $(VENV)-kaggle/done
	$(BIN)/python -m pytest -m browser $(ARGS)

twin: $(VENV)/dev $(TWIN)/made
	KIT_TWIN_PYTHON=$(TWIN)/bin/python $(BIN)/python -m pytest -m twin $(ARGS)

pictures: $(VENV)/dev
	$(BIN)/python tests/dashboard/pictures.py docs

lint: $(VENV)/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

chaos: $(VENV)/dev
	$(BIN)/python tests/chaos/kills.py $(ARGS)
	$(BIN)/python tests/chaos/calls.py
	$(BIN)/python tests/chaos/outages.py

# On an environment that is there: nothing is installed. PYTHON=... names its Python.
gpu:
	$(PYTHON) -m pytest -m gpu --maxfail 3 tests/yolo/test_gpu.py $(ARGS)
	$(PYTHON) benchmarks/gpu.py

clean:
	rm -rf $(VENV) $(VENV)-kaggle $(TWIN)

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

$(TWIN)/made: tests/twin-constraints.txt requirements.txt
	$(or $(PYTHON312),$(error No Python 3.12 was found: give make PYTHON312=PATH)) -m venv --clear $(TWIN)
	$(TWIN)/bin/python -m pip install --quiet -r tests/twin-constraints.txt
	$(TWIN)/bin/python -m pip download --quiet --no-deps --dest $(TWIN)/wheels $(MISSING)
	touch $@

$(VENV)/bench: $(VENV)/run benchmarks/requirements.txt
	$(BIN)/python -m pip install --quiet -r benchmarks/requirements.txt
	touch $@

bench: $(VENV)/bench
	$(BIN)/python benchmarks/loader.py
	$(BIN)/python benchmarks/training.py
	$(BIN)/python benchmarks/saving.py
	$(BIN)/python benchmarks/cost.py
	$(BIN)/python benchmarks/ranks.py
	$(BIN)/python benchmarks/resume.py
