# Needs only make and Python 3.11 or newer; everything else goes into .venv. `make` alone explains the targets.
# Where pip installs from is the business of pip's own configuration: nothing here names a server.
PYTHON  ?= python3
PROFILE ?= mini
ROWS    ?=
TARGETS ?=
SEEDS   ?=
PROCESSES ?= 1
NAMES   ?=
CORES   ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 1)
SHELL   := /bin/sh
BIN     := .venv/bin
READY   := .venv/.ready
# kernels, papermill and snakemake find each other through PATH; OUTSIDE keeps $(PYTHON) from meaning the environment itself
INSIDE  := PATH="$(CURDIR)/$(BIN):$$PATH"
# a value is YAML for Snakemake, so that a profile's path stands in quotation marks, between blanks
STEPS   := $(INSIDE) $(BIN)/python -m snakemake --cores $(CORES) --rerun-incomplete
# tests use what is installed and nothing else, and two of them run side by side with one thread each
TESTING := HF_HUB_OFFLINE=1 MPLBACKEND=Agg

.DEFAULT_GOAL := help
.NOTPARALLEL:
.PHONY: help reproduce unlock test lab pages clean check-style check-modules check-clean check-readme test-pages test-smoke test-pytest test-long test-browser docs serve-docs pretrain benchmark demo walk gpu test-cluster

# $(call stage,name,command): run a command, say how long it took, pass its failure on
define stage
@printf '\n== %s ==\n' "$(1)"; start=$$(date +%s); $(2); status=$$?; took=$$(( $$(date +%s) - start )); \
if [ $$status -eq 0 ]; then printf '== %s: passed in %s s\n' "$(1)" $$took; else printf '== %s: failed after %s s\n' "$(1)" $$took; exit $$status; fi
endef

help: ## list the targets
	@echo "usage: make TARGET [PROFILE=$(PROFILE)] [ROWS='NAME NAME'] [TARGETS='NAME'] [SEEDS='1 2'] [CORES=$(CORES)] [PROCESSES=$(PROCESSES)] [PYTHON=$(PYTHON)]"
	@sed -n 's/^\([a-z-]*\):.*## \(.*\)/  \1|\2/p' Makefile | awk -F'|' '{printf "%-12s %s\n", $$1, $$2}'

reproduce: $(READY) ## tables and figures of PROFILE into figures/PROFILE/, ROWS into Table 2 (resumes where it stopped)
	$(call stage,reproduce $(PROFILE),$(STEPS) --config profile=" \"$(PROFILE)\" " rows="$(ROWS)" targets="$(TARGETS)" seeds="$(SEEDS)" processes=$(PROCESSES))

unlock: $(READY) ## after a power loss or a kill, if `reproduce` says that the folder is locked and no other run is going on
	@$(STEPS) --unlock --config profile=" \"$(PROFILE)\" "

demo: $(READY) ## adapt a segmenter to a new camera in minutes: demo-run/demo.ipynb is the page with its results
	@mkdir -p demo-run
	$(call stage,demo,cd demo-run && PATH="$(CURDIR)/$(BIN):$$PATH" ../$(BIN)/python -m papermill ../nbs/demo_colab.ipynb demo.ipynb -p folder kept --kernel python3)

FOLDER ?=
walk: $(READY) ## type what README.md says, from a clone to the report of an adapted segmenter (FOLDER=NAME keeps it): figures/walk.json
	$(call stage,walk,$(BIN)/python tests/walk.py $(if $(FOLDER),"$(FOLDER)"))

test: check-style check-modules check-clean check-readme test-pages test-smoke test-pytest ## every check, from the notebooks to the smoke profile end to end
	@echo; echo "All stages passed."

check-style: $(READY) ## width, names, imports of pages and tests (ruff), and how dense the pages are
	$(call stage,style,$(BIN)/ruff check . && $(BIN)/ruff format --check . && $(BIN)/python tests/nbstyle.py)

check-modules: $(READY)
	$(call stage,modules equal their notebooks,$(BIN)/python tests/pages.py modules)

check-clean: $(READY)
	$(call stage,notebooks are clean,$(BIN)/python tests/pages.py clean)

check-readme: $(READY)
	$(call stage,README equals its notebook,$(INSIDE) $(TESTING) $(BIN)/python tests/pages.py readme)

test-pages: $(READY) ## run every page's cells and tests (nbdev_test)
	$(call stage,pages,$(INSIDE) $(TESTING) OMP_NUM_THREADS=1 $(BIN)/nbdev_test --n_workers 2 --do_print --timing --skip_file_re '^(demo|[_.])')

test-smoke: $(READY) ## the smoke profile end to end, from nothing
	$(call stage,smoke profile,rm -rf runs/smoke figures/smoke && $(TESTING) $(STEPS) --config profile=smoke rows="no_style mfm_mean_teacher same_eyes" targets=phantom_b)

test-pytest: $(READY) ## the tests in tests/
	$(call stage,pytest,$(INSIDE) $(TESTING) OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist loadfile --no-loadscope-reorder -q -rs --color=no --durations=5 tests)

test-long: $(READY) ## each training killed ten times, 10,000 damaged files, 10,000 folders: figures/test_long.json
	$(call stage,long tests,$(INSIDE) $(TESTING) OMP_NUM_THREADS=1 MFMDA_KILLS=10 MFMDA_FUZZ=10000 MFMDA_EXAMPLES=10000 MFMDA_RECORD=figures/test_long.json $(BIN)/python -m pytest -q --color=no tests/test_kill.py tests/test_fuzz.py tests/test_folders.py)
	$(call stage,a tenth of both pretrainings,$(INSIDE) $(TESTING) OMP_NUM_THREADS=1 MFMDA_PRETRAIN_SHARE=0.1 $(BIN)/python -m pytest -q --color=no tests/test_pretrain.py)

# both run beside each other, on one core each
PRETRAIN := $(INSIDE) OMP_NUM_THREADS=1 $(BIN)/python -m papermill --kernel python3 --cwd . nbs/experiments
pretrain: $(READY) ## train the two models that the package brings, on phantoms alone (some hours; goes on where it stopped)
	@mkdir -p runs/pretrain
	$(call stage,pretrain,$(PRETRAIN)/0_ddpm_phantom.ipynb runs/pretrain/ddpm_phantom.ipynb & ddpm=$$!; $(PRETRAIN)/0_vit_phantom.ipynb runs/pretrain/vit_phantom.ipynb && wait $$ddpm)

benchmark: $(READY) ## each step beside its plain formulation (NAMES='NAME NAME', default: all): figures/benchmark*.json
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[benchmark]'
	$(call stage,benchmarks,$(INSIDE) $(TESTING) $(BIN)/python tests/benchmarks/compare.py $(NAMES))
	$(if $(NAMES),,$(call stage,curves,$(INSIDE) $(TESTING) $(BIN)/python tests/benchmarks/curves.py))

# the browser is Debian's, whose name is chromium; playwright's own browsers are not fetched
CHROMIUM ?= $(shell command -v chromium || command -v chromium-browser)
test-cluster: $(READY) ## start a Slurm of one node (as root), disturb the smoke profile on it, compare with a local run: figures/cluster.json
	$(call stage,cluster,$(INSIDE) $(TESTING) $(BIN)/python tests/cluster.py)

# without $(READY): a machine with a GPU may have no network, and its own torch
GPU_PYTHON = $(if $(wildcard $(BIN)/python),$(BIN)/python,python3)
gpu: ## on a machine with a GPU: figures/gpu.json, then real128 as far as eight minutes go (goes on where it stopped; DEVICE=cpu SMALL=1: a proof)
	$(call stage,gpu,$(INSIDE) PYTHONPATH=$(CURDIR) $(GPU_PYTHON) tests/benchmarks/gpu.py --device $(or $(DEVICE),cuda) $(if $(SMALL),--small --root "$$(mktemp -d)"))

test-browser: docs ## the site, and every slider and button of the pages, in a real browser (needs chromium)
	@[ -n "$(CHROMIUM)" ] || { echo "test-browser needs Chromium: apt-get install chromium (or name one: make test-browser CHROMIUM=/path)." >&2; exit 1; }
	@$(BIN)/python -c 'import playwright' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[browser]'
	$(call stage,browser,$(INSIDE) $(TESTING) OMP_NUM_THREADS=1 CHROMIUM="$(CHROMIUM)" $(BIN)/python -m pytest -q -rs --color=no --durations=0 tests/browser/site_pages.py tests/browser/sliders.py)

docs: $(READY) ## build the site into _docs/site, and check its links
	@$(BIN)/python -c 'import mkdocs_jupyter, mkdocstrings, latex2mathml' 2>/dev/null || $(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[docs]'
	$(call stage,site,NO_MKDOCS_2_WARNING=1 $(BIN)/python docs/make_site.py)

serve-docs: docs ## show the site on this machine: http://127.0.0.1:8000
	@$(BIN)/python -m http.server 8000 --bind 127.0.0.1 --directory _docs/site

pages: $(READY) ## export the notebooks to mfmda/, clean them, render README.md
	$(BIN)/nbdev_export
	$(BIN)/python tests/pages.py write-clean
	$(INSIDE) $(BIN)/python tests/pages.py write-readme

lab: $(READY) ## open the pages in JupyterLab
	$(INSIDE) $(BIN)/python -m jupyter lab nbs

clean: ## remove what tests and builds leave; keeps .venv, runs/ and figures/ of other profiles
	rm -rf build dist *.egg-info .pytest_cache .hypothesis runs/smoke figures/smoke
	find mfmda nbs tests -name __pycache__ -o -name .ipynb_checkpoints -o -name .last_checked | while read -r path; do rm -rf "$$path"; done

$(READY): constraints.txt settings.ini setup.py pyproject.toml
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null || { \
	  echo "mfmda needs Python 3.11 or newer, and '$(PYTHON)' is $$($(PYTHON) --version 2>&1 | tail -n 1). Name another: make PYTHON=/path/to/python3.12" >&2; exit 1; }
	@$(BIN)/python -m pip --version >/dev/null 2>&1 || $(PYTHON) -m venv --clear .venv || { \
	  echo "'$(PYTHON) -m venv' failed. On Debian and Ubuntu, install the package python3-venv first." >&2; exit 1; }
	$(call stage,environment,$(BIN)/python -m pip install --quiet --disable-pip-version-check -c constraints.txt -e '.[dev]')
	@touch $@
