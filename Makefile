# Quartet. `make` alone lists what there is.
#
# The first call on a machine with Python 3.11+ and make builds .venv and installs what its target needs, once per
# requirements file: .venv/stamps/<name> says that requirements/<name>.txt is installed as it stands. Those files are
# written by `make lock`; pip takes nothing but wheels whose hashes they have.
# A script's own exit code is in make's last line ("Error 75"); make itself exits with 2.

SHELL := /bin/bash
.DEFAULT_GOAL := help
.NOTPARALLEL:
.DELETE_ON_ERROR:
.SECONDARY:

VENV_PYTHON := .venv/bin/python
STAMPS := .venv/stamps
APPS := $(patsubst apps/%/__init__.py,%,$(sort $(wildcard apps/*/__init__.py)))
APP_STAMPS := $(addprefix $(STAMPS)/,$(APPS))
SCRIPT := train.py
# Tests and benchmarks must not depend on how many cores there are; training decides for itself.
THREADS = OMP_NUM_THREADS=$(1) MKL_NUM_THREADS=$(1) TOKENIZERS_PARALLELISM=false
PYTEST := $(call THREADS,1) $(VENV_PYTHON) -m pytest --numprocesses 2 --dist loadfile

##@ Training
.PHONY: train doctor
train: check-app $(STAMPS)/$(APP) ## Train: APP=name [ARGS="--flag key=value"] [NPROC=processes] [SCRIPT=train.py]
	@exec $(LAUNCH) apps/$(APP)/$(SCRIPT) $(ARGS)

doctor: $(APP_STAMPS) ## Check this machine: Python, torch, devices, memory, disk, optional services
	@$(VENV_PYTHON) -m quartet doctor

##@ Checking
.PHONY: test test-all chaos fuzz lint audit format bench bench-gpu
test: $(APP_STAMPS) $(STAMPS)/dev ## Run the tests (under ten minutes): [ARGS="-k name"]
	@$(PYTEST) $(ARGS)

test-all: $(APP_STAMPS) $(STAMPS)/dev ## Run all tests, the slow ones too: [ARGS="-k name"]
	@$(PYTEST) -m "" $(ARGS)

# In memory, where there is such a folder: writing a million small files to a disk would take most of the time.
fuzz: $(APP_STAMPS) $(STAMPS)/dev ## Feed every parser FUZZ_CASES=20000 damaged files: [ARGS="-k tiff"] [SEED=n]
	@export FUZZ_CASES=$${FUZZ_CASES:-20000}; [ ! -w /dev/shm ] || export TMPDIR=/dev/shm; seed=$(or $(SEED),$$RANDOM); echo "The same cases again: SEED=$$seed"; \
	  $(PYTEST) --dist load --timeout 0 --hypothesis-seed $$seed tests/fuzz $(ARGS)

chaos: check-app $(STAMPS)/$(APP) ## Kill and damage runs of APP, compare how they end: APP=name [KILLS=20] [ARGS="--faults kill"]
	@exec $(VENV_PYTHON) -m quartet chaos $(APP) $(if $(KILLS),--kills $(KILLS)) $(ARGS)

# bandit asks only what ruff's S rules, which are bandit's, leave out.
lint: $(APP_STAMPS) $(STAMPS)/dev ## Check style (ruff), types (mypy), unsafe loading (bandit), known vulnerabilities (daily)
	@$(VENV_PYTHON) -m ruff check .
	@$(VENV_PYTHON) -m ruff format --check .
	@$(VENV_PYTHON) -m mypy
	@$(VENV_PYTHON) -m bandit --quiet --recursive --tests B614 libs apps scripts
	@$(VENV_PYTHON) scripts/audit.py --daily

audit: $(STAMPS)/dev ## Ask now about known vulnerabilities of all pinned packages (pip-audit)
	@$(VENV_PYTHON) scripts/audit.py

format: $(STAMPS)/dev ## Rewrite the code in the project's style
	@$(VENV_PYTHON) -m ruff check --fix-only --quiet .
	@$(VENV_PYTHON) -m ruff format .

bench: $(APP_STAMPS) $(STAMPS)/benchmarks ## Measure against the peers, side by side: [ARGS="name ..."]
	@$(call THREADS,2) $(VENV_PYTHON) benchmarks/run.py $(ARGS)

bench-gpu: $(APP_STAMPS) $(STAMPS)/benchmarks ## Fill docs/BENCHMARKS.md's tables of a GPU in nine minutes: [ARGS="--only steps"]
	@$(VENV_PYTHON) -m benchmarks.gpu $(ARGS)

##@ Shipping and upkeep
.PHONY: new-app wheel docker lock sbom pictures clean help
new-app: $(STAMPS)/base ## Write a small, complete app, ready to be changed: NAME=toy
	@$(VENV_PYTHON) -m quartet new-app $(NAME)

wheel: $(STAMPS)/project ## Build dist/quartet_train-*.whl: pip install "<it>[perceiver]" brings the command quartet
	@rm -rf build dist/*.whl && $(VENV_PYTHON) -m pip wheel --disable-pip-version-check --quiet --no-deps --wheel-dir dist .
	@rm -rf build libs/*.egg-info && ls dist/*.whl

docker: check-app ## Build the image of APP with docker, podman or buildah, whichever is there
	@exec docker/build.sh $(APP) $(ARGS)

lock: $(STAMPS)/dev ## Write requirements/*.txt (all pins, with hashes) from the .in files: [ARGS="--upgrade-package X"]
	@$(VENV_PYTHON) scripts/lock.py $(ARGS)

sbom: check-app $(STAMPS)/$(APP) $(STAMPS)/dev ## Write dist/quartet-APP.cdx.json: the packages of APP, licences, hashes (CycloneDX)
	@$(VENV_PYTHON) scripts/sbom.py $(APP)

pictures: $(APP_STAMPS) ## Train the four demos and make the pictures of the README from what they leave: [ARGS="--app x"]
	@$(VENV_PYTHON) scripts/pictures.py $(ARGS)

clean: ## Remove caches and build leftovers; outputs/ and .venv stay
	@rm -rf .mypy_cache .pytest_cache .ruff_cache build dist
	@find apps benchmarks libs scripts tests -name __pycache__ -type d -prune -exec rm -rf {} +

help: ## Show this list
	@awk 'BEGIN { FS = ":.*## " } /^##@ / { printf "\n%s\n", substr($$0, 5) } \
	  /^[a-z-]+:.*## / { printf "  make %-10s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)
	@printf '\nApps: %s\nFirst run: make train APP=perceiver\n' '$(APPS)'

# ---- one process, several, or several machines ------------------------------------------------------------------------
# `exec` keeps the training process make's own child: Ctrl-C and SIGTERM reach it, and make waits while it saves.
NPROC ?= 1
NNODES ?= 1
ifeq ($(NPROC)/$(NNODES),1/1)
LAUNCH = $(VENV_PYTHON)
else
ifeq ($(NNODES),1)
RENDEZVOUS = --standalone
else ifneq ($(RDZV_ENDPOINT),)
RENDEZVOUS = --nnodes=$(NNODES) --rdzv-backend=c10d --rdzv-id=$(or $(RDZV_ID),quartet) --rdzv-endpoint=$(RDZV_ENDPOINT)
else
RENDEZVOUS = --nnodes=$(NNODES) --node-rank=$(or $(NODE_RANK),$(error NNODES=$(NNODES) needs NODE_RANK=0.. or RDZV_ENDPOINT)) \
  --master-addr=$(or $(MASTER_ADDR),$(error NNODES=$(NNODES) needs MASTER_ADDR=host of rank 0)) --master-port=$(or $(MASTER_PORT),29500)
endif
# torchrun kills its workers 30 s after a signal unless told otherwise; a large checkpoint takes longer to write.
LAUNCH = env TORCH_ELASTIC_SHUTDOWN_TIMEOUT=$${TORCH_ELASTIC_SHUTDOWN_TIMEOUT:-600} OMP_NUM_THREADS=$${OMP_NUM_THREADS:-1} \
  $(VENV_PYTHON) -m torch.distributed.run $(RENDEZVOUS) --nproc-per-node=$(NPROC)
endif

.PHONY: check-app
check-app:
	@if [ -z '$(APP)' ]; then echo 'Say which app: APP=name, one of: $(APPS)' >&2; exit 2; fi
	@case ' $(APPS) ' in *' $(APP) '*) ;; *) echo 'No app named "$(APP)"; there is: $(APPS)' >&2; exit 2;; esac
	@if [ ! -f 'apps/$(APP)/$(SCRIPT)' ]; then echo 'No script apps/$(APP)/$(SCRIPT); there is:' \
	  $(sort $(notdir $(shell grep -l __main__ apps/$(APP)/*.py 2>/dev/null))) >&2; exit 2; fi

# ---- the environment ---------------------------------------------------------------------------------------------------
# PYTHON=... chooses the interpreter that .venv is made with; otherwise the first of these that is new enough.
FIND_PYTHON = for python in $(or $(PYTHON),python3 python3.13 python3.12 python3.11 python); do \
  "$$python" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1 && break; python=; done

# A .venv whose interpreter is gone (an upgraded or moved Python) is made anew; with it go its stamps.
# The import paths are a .pth file of relative lines: nothing to build or download, and a moved checkout still works.
$(STAMPS)/project: $(if $(realpath $(VENV_PYTHON)),,FORCE)
	@$(FIND_PYTHON); \
	if [ -z "$$python" ]; then echo 'Python 3.11 or newer is needed, which $(or $(PYTHON),python3) is not. Install it (Debian,' \
	  'Ubuntu: apt install python3 python3-venv) or name one: make PYTHON=/path/to/python3.12 ...' >&2; exit 2; fi; \
	if ! "$$python" -c 'import ensurepip, venv' 2>/dev/null; then echo "$$python cannot make virtual environments:" \
	  "install its venv module (Debian, Ubuntu: apt install python3-venv)" >&2; exit 2; fi; \
	if [ ! -e $(VENV_PYTHON) ]; then echo "Making .venv with $$("$$python" -V)"; "$$python" -m venv --clear .venv || exit; fi
	@$(VENV_PYTHON) -c 'import os, sysconfig; site = sysconfig.get_path("purelib"); \
	  open(os.path.join(site, "quartet.pth"), "w").writelines(os.path.relpath(p, site) + "\n" for p in ("libs", "."))'
	@printf '#!/bin/sh\nexec "$$(dirname "$$0")/python" -P -m quartet "$$@"\n' > .venv/bin/quartet && chmod +x .venv/bin/quartet
	@mkdir -p $(STAMPS) && touch $@

# What pip says is cut down to the downloads that take long; errors come through whole. The stamp is the last step.
$(STAMPS)/%: requirements/%.txt $(STAMPS)/project
	@echo 'Installing $<$(if $(filter $(APP_STAMPS),$@), (up to 3 GB to download the first time))'
	@set -o pipefail; $(VENV_PYTHON) -m pip install --disable-pip-version-check --no-input --progress-bar off \
	  --require-hashes --requirement $< \
	  | awk '/^ *Downloading .* [MG]B\)/ { sub(/[^ ]*\//, ""); print; fflush() } /^Installing/ { print "  Installing " NF - 3 " packages"; fflush() }'
	@touch $@
$(APP_STAMPS) $(STAMPS)/benchmarks: requirements/base.txt

.PHONY: FORCE
FORCE:
