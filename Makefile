# make demo: environment and the main job on bundled images.   make test: environment, lint, types, tests.
PYTHON ?= python3
VENV := .venv
BIN := $(VENV)/bin
FLAGS ?=

# An older TensorFlow, in an environment of its own: 2.15, 2.17 or 2.19. The lanes want Python 3.11, unless PYTHON names another.
TF ?= 2.15
LANE := .venv-tf$(TF)
LANE_PYTHON := $(if $(filter file,$(origin PYTHON)),python3.11,$(PYTHON))

ATLAS := .venv-atlas
SKLEARN := .venv-sklearn
TFX := .venv-tfx
CHROMIUM ?= /usr/bin/chromium

.PHONY: demo pipeline pipeline-tfx test test-slow test-tf test-tfx test-sklearn test-atlas soak lint format reference screenshots system-deps lock wheel clean help

help:
	@sed -n '1s/^# //p' Makefile
	@echo 'make pipeline, pipeline-tfx, test-slow, test-tf, test-tfx, test-sklearn, test-atlas, soak, lint, format, reference, screenshots, system-deps, lock, wheel, clean: see BUILD.md'

demo: $(VENV)/.core
	$(BIN)/python -m sela_tf.train --flagfile=configs/digits.cfg --workdir=runs/digits $(FLAGS)

# Ingestion, training and verdict as steps of Kubeflow Pipelines, on this machine; again, and what is unchanged is not done again.
pipeline: $(VENV)/.dev
	$(BIN)/python -m components.pipeline --flagfile=configs/digits.cfg --root=runs/pipeline --min_knn=0.95 --min_linear_probe=0.95 $(FLAGS)

# The same steps as a pipeline of TFX. On a glibc that is too old for TFX, root runs it in a Debian 13 (tools/tfx_root.sh).
pipeline-tfx:
	tools/tfx_root.sh $(MAKE) --no-print-directory in-tfx-pipeline

in-tfx-pipeline: $(TFX)/.lock
	$(TFX)/bin/python -m components.pipeline_tfx --flagfile=configs/digits.cfg --root=runs/pipeline_tfx --min_knn=0.95 --min_linear_probe=0.95 $(FLAGS)

# Two processes share two cores: threads of OpenMP that wait for each other by spinning would take a fifth of the time.
test test-slow test-tf test-tfx test-sklearn: export OMP_NUM_THREADS = 1

test: lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup $(FLAGS)

test-slow: $(VENV)/.dev
	$(BIN)/python -m pytest -m slow -n 2 --dist loadgroup $(FLAGS)

# What a reused library needs, from the wheel and not from the checkout, on the TensorFlow of the lane.
test-tf: $(LANE)/.lane
	rm -rf build
	$(LANE)/bin/uv pip install --quiet --python $(LANE)/bin/python --no-deps --reinstall .
	PYTHONSAFEPATH=1 $(LANE)/bin/python -m pytest -n 2 --dist loadgroup @tests/lanes.txt -m "lane or not slow" $(FLAGS)

# The components in TFX, with TFX's own components before and behind them.
test-tfx:
	tools/tfx_root.sh $(MAKE) --no-print-directory in-tfx-test

in-tfx-test: $(TFX)/.lock
	$(TFX)/bin/python -m pytest tests/in_tfx $(FLAGS)

# BalancedKMeans by the checks of the oldest scikit-learn that the package takes, from the wheel: by hand before a release.
test-sklearn: $(SKLEARN)/.lock
	rm -rf build
	$(BIN)/uv pip install --quiet --python $(SKLEARN)/bin/python --no-deps --reinstall .
	PYTHONSAFEPATH=1 $(SKLEARN)/bin/python -m pytest tests/test_balanced_kmeans.py -m "slow or not slow" $(FLAGS)

# labels.parquet in embedding-atlas, by hand: its environment has gigabytes. CHROMIUM is the browser that looks at the page.
test-atlas: $(VENV)/.dev $(ATLAS)/.lock
	$(BIN)/python tests/atlas/label_runs.py runs/atlas
	$(ATLAS)/bin/python tests/atlas/look.py $(CHROMIUM) runs/atlas/digits.parquet runs/atlas/photos.parquet

# Runs of each kind, killed and terminated at random moments and called again: their files are those of unbroken runs. By hand: it takes an hour.
soak: $(VENV)/.dev
	PYTHONPATH=tests $(BIN)/python -m soak $(FLAGS)

lint: $(VENV)/.dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/hadolint components/Dockerfile

format: $(VENV)/.dev
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

# docs/reference.md, from the code.
reference: $(VENV)/.dev
	$(BIN)/python -m tools.make_reference

# Fashion-MNIST, as idx files under /usr/share/datasets, and Chromium, for the tests of report.html. Debian and Ubuntu only, and only root can.
DEPS := dataset-fashion-mnist chromium
system-deps:
	@if [ -e /usr/share/datasets/fashion-mnist/train-images-idx3-ubyte.gz ] && [ -x /usr/bin/chromium ]; then echo 'Fashion-MNIST and Chromium are there'; \
	elif [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then apt-get update && apt-get install -y --no-install-recommends $(DEPS); \
	else echo 'Fashion-MNIST or Chromium is missing. As root on Debian or Ubuntu: apt-get install $(DEPS)' >&2; fi

# Pictures of report.html at the width of a desk and of a phone, in runs/screenshots: to be looked at. RUN names another run.
RUN ?= runs/digits
screenshots: $(VENV)/.dev
	[ -e $(RUN)/report.html ] || $(MAKE) demo
	$(BIN)/python -m tools.screenshots $(RUN)/report.html runs/screenshots

lock: $(VENV)/.dev
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --upgrade --extra dev pyproject.toml -o requirements-dev.lock
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --upgrade -c requirements-dev.lock pyproject.toml -o requirements.lock
	for lane in tests/locks/*.in; do case $$lane in */tools.in|*/atlas.in) continue;; */tf-2.15.in) all=;; *) all=--universal;; esac; \
	  $(BIN)/uv pip compile $$all --python-version 3.11 --no-header --upgrade pyproject.toml $$lane -o $${lane%.in}.lock; done
	$(BIN)/uv pip compile --universal --python-version 3.11 --no-header --upgrade tests/locks/atlas.in -o tests/locks/atlas.lock

wheel: $(VENV)/.dev
	rm -rf build dist
	$(BIN)/python -m build --wheel

clean:
	rm -rf $(VENV) .venv-tf* $(ATLAS) $(SKLEARN) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .hypothesis

$(VENV)/.python: tools/check_python.py
	@command -v $(PYTHON) >/dev/null || { echo 'error: there is no $(PYTHON). Name a Python 3.11, 3.12 or 3.13: make demo PYTHON=/path/to/python3' >&2; exit 1; }
	@[ -x $(BIN)/pip ] || $(PYTHON) tools/check_python.py
	@[ -x $(BIN)/pip ] || $(PYTHON) -m venv $(VENV)
	@touch $@

$(VENV)/.core: $(VENV)/.python requirements.lock pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@

$(VENV)/.dev: $(VENV)/.python requirements-dev.lock pyproject.toml
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -r requirements-dev.lock
	$(BIN)/python -m pip install --quiet --disable-pip-version-check --no-deps --editable .
	@touch $@ $(VENV)/.core

$(LANE)/.lane: tests/locks/tf-$(TF).lock tools/check_python.py
	@$(LANE_PYTHON) -c '' 2>/dev/null || { echo 'error: there is no $(LANE_PYTHON). Name a Python 3.11: make test-tf TF=$(TF) PYTHON=/path/to/python3.11' >&2; exit 1; }
	@$(LANE_PYTHON) tools/check_python.py $(TF)
	$(LANE_PYTHON) -m venv --clear $(LANE)
	$(LANE)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(LANE)/bin/uv pip install --quiet --python $(LANE)/bin/python -r tests/locks/tf-$(TF).lock
	@touch $@

$(ATLAS)/.lock: tests/locks/atlas.lock $(VENV)/.dev
	$(BIN)/python -m venv --clear $(ATLAS)
	$(BIN)/uv pip install --quiet --python $(ATLAS)/bin/python -r tests/locks/atlas.lock
	@touch $@

$(SKLEARN)/.lock: tests/locks/sklearn.lock $(VENV)/.dev
	$(BIN)/python -m venv --clear $(SKLEARN)
	$(BIN)/uv pip install --quiet --python $(SKLEARN)/bin/python -r tests/locks/sklearn.lock
	@touch $@

# The installed package, for its metadata; the modules are those of the checkout.
$(TFX)/.lock: tests/locks/tfx.lock pyproject.toml tools/check_python.py
	@$(PYTHON) tools/check_python.py
	$(PYTHON) -m venv --clear $(TFX)
	$(TFX)/bin/python -m pip install --quiet --disable-pip-version-check 'uv>=0.9,<1'
	$(TFX)/bin/uv pip install --quiet --python $(TFX)/bin/python -r $<
	$(TFX)/bin/uv pip install --quiet --python $(TFX)/bin/python --no-deps --editable .
	@touch $@

tests/locks/tf-%.lock:
	@echo 'error: there is no lane of TensorFlow $*. Take one of $(patsubst tests/locks/tf-%.in,%,$(wildcard tests/locks/tf-*.in)): make test-tf TF=2.15' >&2; exit 1
