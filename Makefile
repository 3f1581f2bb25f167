# make setup | demo | test | test-page | lint | types | docs | gpu-check | clean
#
# PYTHON is the interpreter that creates the environment, VENV where it lies:
#   make setup PYTHON=python3.12 VENV=/path/to/venv

PYTHON ?= python3
VENV ?= .venv
RUN := $(VENV)/bin/python
PIP := $(RUN) -m pip --disable-pip-version-check --quiet
# Processes that run tests, and threads of each. A test is mostly Python, which has one.
TEST_WORKERS ?= 2
DEMO_CONFIG := projects/aligndetr/configs/aligndetr_demo.py
DEMO_OUTPUT := output/demo

.PHONY: help setup demo test test-page lint types docs gpu-check clean

help:
	@echo "make setup   create $(VENV) and install everything, detectron2 included"
	@echo "make demo    train, evaluate and draw on real aerial images (12 to 30 minutes on two cores)"
	@echo "make test    run the tests"
	@echo "make test-page   run the tests of page (aligndetr app) and report in a headless Chromium"
	@echo "make lint    check style and format"
	@echo "make types   check the types of the library"
	@echo "make docs    build the documentation into site/; every warning is an error"
	@echo "make gpu-check   check and measure on a GPU (minutes); says so where there is none"
	@echo "make clean   remove caches and build products; $(VENV), datasets and output stay"

setup: $(VENV)/setup.done

# The stamp makes a second `make setup` a no-op until a requirement changes.
$(VENV)/setup.done: requirements.txt requirements-dev.txt setup.py
	@$(PYTHON) -c 'import sys; sys.version_info >= (3, 10) or sys.exit("error: $(PYTHON) is \
	Python %d.%d, AlignDETR needs 3.10 or newer: make setup PYTHON=..." % sys.version_info[:2])'
	@echo "Setting up $(VENV): PyTorch alone is several GB, this takes a few minutes."
	test -x $(RUN) || $(PYTHON) -m venv $(VENV)
	$(PIP) install -r requirements-dev.txt
	$(PIP) install --no-build-isolation -e '.[dev]'
	$(RUN) -m aligndetr.install_detectron2
	@touch $@

# --resume: an interrupted demo goes on where it was.
demo: setup
	$(RUN) tools/prepare_demo_data.py
	$(RUN) tools/train_net.py --resume --config-file $(DEMO_CONFIG)
	$(RUN) tools/plot_predictions.py --config-file $(DEMO_OUTPUT)/config.yaml \
		train.init_checkpoint=$(DEMO_OUTPUT)/model_final.pth

test: setup
	OMP_NUM_THREADS=1 $(RUN) -m pytest --numprocesses $(TEST_WORKERS) --dist loadfile

# Gradio wants a Pillow older than the one in requirements.txt: the page is tested in an environment
# that has this and Gradio, and else sees what is in $(VENV).
PAGE := $(VENV)/page
PACKAGES = import sysconfig; print(sysconfig.get_path("purelib"))

$(PAGE)/setup.done: $(VENV)/setup.done requirements-app.txt
	test -x $(PAGE)/bin/python || $(RUN) -m venv $(PAGE)
	echo "import site; site.addsitedir('$$($(RUN) -c '$(PACKAGES)')')" \
		> "$$($(PAGE)/bin/python -c '$(PACKAGES)')/zz_$(notdir $(VENV)).pth"
	$(PAGE)/bin/python -m pip --disable-pip-version-check --quiet install -r requirements-app.txt
	@touch $@

# Without a browser its tests would be skipped and the rest pass.
test-page: $(PAGE)/setup.done
	@command -v chromium-headless-shell || command -v chromium || command -v google-chrome || \
		{ echo "error: no Chromium; apt-get install chromium-headless-shell" >&2; exit 1; }
	OMP_NUM_THREADS=1 $(PAGE)/bin/python -m pytest tests/app tests/analysis/test_report.py -m ""

lint: setup
	$(RUN) -m ruff check
	$(RUN) -m ruff format --check

types: setup
	$(RUN) -m pyright --pythonpath $(RUN)

# Installs what it needs, which `make setup` leaves out. The variable keeps the theme from advertising.
docs: setup $(VENV)/docs.done
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

$(VENV)/docs.done: requirements-docs.txt
	$(PIP) install -c requirements.txt -r requirements-docs.txt
	@touch $@

# Exit code 2 where there is no GPU.
gpu-check: setup
	$(RUN) benchmarks/gpu_check.py

clean:
	rm -rf build dist site aligndetr.egg-info .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -type d -not -path './.*' -not -path './$(VENV)/*' -prune -exec rm -r {} +
