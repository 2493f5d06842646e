# The two commands are `make demo` and `make test`; `make help` lists the rest.
VENV := .venv
BIN := $(VENV)/bin
STAMP := $(VENV)/.installed
EXTRAS := metaworld,embedded,report,smolvla,qwen,diffusion,coc,docs,dev
# Versions to install: those that CI tested. Empty: the newest that pyproject.toml allows.
CONSTRAINTS := constraints.txt
ifneq (,$(findstring libero,$(EXTRAS)))
CONSTRAINTS := build/constraints-libero.txt
endif
JOBS ?= 2
# First interpreter of at least 3.12 that can make a virtual environment; choose another with `make PYTHON=...`.
PYTHON ?= $(shell for p in python3.12 python3.13 python3 "$$HOME"/.pyenv/versions/3.1[23]*/bin/python3; do \
	"$$p" -c 'import sys, venv, ensurepip; sys.exit(sys.version_info < (3, 12))' >/dev/null 2>&1 && echo "$$p" && break; done)

.PHONY: help env demo test storm lint format doctor wheel docs audit nightly bare image clean
.DEFAULT_GOAL := help

help:  ## this list
	@grep -hE '^[a-z]+:.*##' $(MAKEFILE_LIST) | sed -E 's/^([a-z]+):[^#]*## */  make \1\t/' | expand -t 18

env: $(STAMP)  ## make .venv and install everything that the demo and the tests need

# LIBERO needs an older MuJoCo than the one that Meta-World's records are of (docs/libero.md).
build/constraints-libero.txt: constraints.txt
	@mkdir -p build
	@sed 's/^mujoco==.*/mujoco==3.3.7/' $< >$@

$(STAMP): pyproject.toml constraints.txt $(CONSTRAINTS)
	@test -x $(BIN)/python || test -n "$(PYTHON)" || { \
		echo "No Python >= 3.12 with venv found. Install one (Debian 13: apt-get install python3-venv; or pyenv install 3.12)" \
			"or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	@test -x $(BIN)/python || { echo "Making $(VENV) with $(PYTHON)"; "$(PYTHON)" -m venv $(VENV); }
	@echo "Installing (first time: about 4 minutes, 7 GB; log: $(VENV)/install.log)"
	@$(BIN)/python -m pip install --disable-pip-version-check $(if $(CONSTRAINTS),--constraint $(CONSTRAINTS)) \
		--editable ".[$(EXTRAS)]" >$(VENV)/install.log 2>&1 || { tail -n 20 $(VENV)/install.log; echo "Installation failed: $(VENV)/install.log"; exit 1; }
	@touch $@

demo: env  ## record, precompute, train, evaluate beside two controls, show
	@$(BIN)/python examples/demo/run.py

test: lint  ## lint, then all tests that need neither a GPU nor the hub
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist loadfile -m "not gpu and not hub" $(ARGS)

storm: env  ## kill every long job at 30 random moments (ARGS='--jobs=labels,record --kills=100 --seed=1')
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 MUJOCO_GL=egl $(BIN)/python tests/faults/storm.py $(ARGS)

lint: env  ## ruff
	@$(BIN)/ruff check . && $(BIN)/ruff format --check .

format: env  ## let ruff rewrite
	@$(BIN)/ruff check --fix . && $(BIN)/ruff format .

doctor: env  ## check this installation
	@$(BIN)/wm-doctor

wheel: env  ## source distribution and wheel in dist/, and the tests that install them
	@rm -rf dist
	@$(BIN)/python -m build --outdir dist .
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -q tests/plugin/test_distribution.py $(ARGS)

docs: env  ## the documentation site in build/site; dead links are errors
	@NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict

audit:  ## known vulnerabilities of the versions in constraints.txt (needs a network)
	@test -x build/audit/bin/pip-audit || { "$(PYTHON)" -m venv build/audit && build/audit/bin/pip install --quiet "pip-audit>=2.9,<3"; }
	@build/audit/bin/python .ci/audit.py $(ARGS)

nightly:  ## LeRobot's newest release, or LEROBOT=CHECKOUT, in an environment of its own: our tests (ARGS=tests/core), what broke
	@$(MAKE) --no-print-directory env VENV=build/nightly/venv CONSTRAINTS=
	@build/nightly/venv/bin/python .ci/nightly.py $(if $(LEROBOT),--lerobot=$(LEROBOT)) -n $(JOBS) $(ARGS)

bare:  ## both commands in a new Debian with what README asks for and no more (root; COMMANDS='make env')
	@.ci/bare.sh $(if $(COMMANDS),'$(COMMANDS)')

image:  ## the image of Dockerfile by buildah, DEVICE=cuda or cpu, without a daemon (root; ARGS='EXTRAS=embedded'; COMMANDS=... runs inside)
	@COMMANDS='$(COMMANDS)' .ci/image.sh $(or $(DEVICE),cuda) $(ARGS)

clean:  ## remove the demo's outputs, what was built, and caches; keep .venv
	rm -rf outputs/demo .pytest_cache .ruff_cache build dist *.egg-info
