# `make dashboard` and `make test` set themselves up in .venv; they install only when the requirements changed.
PYTHON ?= python3
VENV ?= .venv
PORT ?= 8501
BIN := $(VENV)/bin
PIP := $(BIN)/python -m pip install --disable-pip-version-check
PYTEST := $(BIN)/python -m pytest -v
NIIVUE := dashboard/viewer/web/vendor/.fetched

.DEFAULT_GOAL := help
.PHONY: help dashboard test oracle soak lint audit bench precompute pictures clean

help:
	@echo "make dashboard   install, make the demo ready, open the dashboard at http://127.0.0.1:$(PORT)"
	@echo "make test        install the tools too and run every test"
	@echo "make oracle      compare nnU-Net models with nnU-Net itself, which this installs beside the rest"
	@echo "make soak        kills, races, full disks, flipped bits and restarts: ten times as many as make test"
	@echo "make lint        style, types, the import contracts and what bandit finds"
	@echo "make audit       known holes in what is installed, where the list of them can be reached"
	@echo "make bench       speed and memory, measured here and now"
	@echo "make precompute  the demo's run, computed again where data/runs lacks it (about two hours)"
	@echo "make pictures    the README's screenshots, taken anew"
	@echo "make clean       remove .venv and the caches; data stays"

dashboard: $(VENV)/.package $(NIIVUE)
	$(BIN)/agg2exp demo
	$(BIN)/agg2exp dashboard --port $(PORT)

# The browser tests measure waits, so they have both cores to themselves.
test: $(VENV)/.tools $(NIIVUE)
	$(PYTEST) -n 2 --dist loadfile -m "not browser and not oracle"
	$(PYTEST) -m browser

soak: $(VENV)/.tools
	AGG2EXP_SOAK=1 $(PYTEST) tests/test_soak.py tests/test_safety.py tests/test_queries.py

# Beside the environment, not in it: nnU-Net would ask for another torch.
oracle: $(VENV)/.tools
	$(PIP) --no-deps --upgrade --target .oracle -r requirements-oracle.txt
	PYTHONPATH=.oracle $(PYTEST) -m oracle

lint: $(VENV)/.tools
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo
	$(BIN)/bandit -q -c pyproject.toml -ll -r agg2exp_core dashboard

audit: $(VENV)/.tools
	$(BIN)/pip-audit --strict --no-deps -r requirements.txt

bench: $(VENV)/.tools $(NIIVUE)
	$(BIN)/agg2exp demo
	$(BIN)/python -m bench

# Maps are kept of the README's tour: to look at, all clinic cases'; in full, until they are summed over the lesions.
MODELS := thorax17_swinunetr thorax17_segresnet
EXPLAIN := $(BIN)/agg2exp explain --samples 4 --precision float32
TOUR := lung_upper_lobe_left,lung_lower_lobe_left,lung_lower_lobe_right,heart,aorta

precompute: $(VENV)/.package
	$(BIN)/agg2exp demo
	for model in $(MODELS); do \
		run=$$model-smoothgrad-pairs-4 && \
		$(EXPLAIN) --model $$model --cohort reference --case ref-01 --targets $(TOUR) && \
		{ [ -d data/runs/clinic/$$run/regions/pathology ] || $(EXPLAIN) --model $$model --cohort clinic \
			--case cli-02 --case cli-04 --case cli-07 --case cli-12 --targets $(TOUR) --saliency-dtype float16; } && \
		$(EXPLAIN) --model $$model --cohort clinic --targets $(TOUR) && \
		$(EXPLAIN) --model $$model --cohort reference --saliency-dtype none && \
		$(EXPLAIN) --model $$model --cohort clinic --saliency-dtype none && \
		{ [ -d data/runs/clinic/$$run/regions/pathology ] || $(BIN)/agg2exp aggregate --cohort clinic --run $$run \
			--masks data/cohorts/clinic/pathology --name pathology; } && \
		$(BIN)/agg2exp thin --cohort clinic --run $$run && \
		$(BIN)/agg2exp outliers --fit reference:$$run --score clinic:$$run || exit 1; \
	done

pictures: $(VENV)/.tools $(NIIVUE)
	$(BIN)/agg2exp demo
	$(BIN)/python -m docs.pictures

clean:
	rm -rf $(VENV) .oracle dashboard/viewer/web/vendor .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis *.egg-info
	find . -name __pycache__ -type d -prune -exec rm -rf {} +

$(VENV)/bin/python:
	@command -v $(PYTHON) >/dev/null || { echo "Python 3.11 or later is needed; $(PYTHON) was not found"; exit 1; }
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "Python 3.11 or later is needed, not $$($(PYTHON) -V); name one: make PYTHON=python3.12 …"; exit 1; }
	@$(PYTHON) -m venv $(VENV) || { rm -rf $(VENV); exit 1; }

$(VENV)/.requirements: requirements.txt requirements-nnunet.txt | $(VENV)/bin/python
	$(PIP) -r requirements.txt
	$(PIP) --no-deps -r requirements-nnunet.txt
	@touch $@

$(VENV)/.package: pyproject.toml $(VENV)/.requirements
	$(PIP) --no-deps -e .
	@touch $@

$(VENV)/.tools: requirements-dev.txt $(VENV)/.package
	$(PIP) -r requirements-dev.txt
	@touch $@

# The viewer's module comes from npm. Without it the dashboard shows plain slices and says so, so that a machine
# that cannot reach npm still gets a dashboard; the next `make` tries again.
$(NIIVUE): dashboard/viewer/web/package-lock.json | $(VENV)/bin/python
	@if $(BIN)/python -m dashboard.viewer.fetch; then touch $@; fi
