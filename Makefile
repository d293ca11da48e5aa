# demo   three virtual boards, a cell on all of them, JupyterLab on the tutorials (LAB=0: no JupyterLab)
# test   the checks, then all tests and notebooks     (ARGS='-k wire' for pytest)
# soak   the stories of system tests in full size: 500 boards, 100 MB of output; then 10,000 jobs
#        while links break and servers die, a fifth of them over TLS anew, and half as many with
#        three servers and 300 boards; 5 minutes of a server that is killed every 3 s; 30,000 cells;
#        half an hour (JOBS=100000 for longer, SEED=2)
# attacks  takes each defence out of a copy of the code and shows that its tests notice
#        (ARGS=token: those with that word in their name, and nothing else); then a minute each of
#        seeded hostile input over plain connections, TLS and MAC
# hardware  the suite for a board on a cable, ten minutes long; it prints a table for an issue:
#        make hardware PORT=/dev/ttyACM0 [WIFI=SSID] [RESET="a command that presses RESET"]
#        without WIFI through the bridge; SERVER=HOST[:PORT] as the board reaches this machine,
#        LINK=mac for a link without TLS. It removes the client and app.py that are on the board.
# check  style, types, imports, spelling, plain words
# docs   the site, in build/site, with warnings as errors; then the links between its pages
# package  wheel and source archive; the wheel in empty environments, with each extra, and uninstalled
#        (PYTHONS="python3.12 python3.13" for others than that of .venv)
# bench  ours beside its peers
# clean  removes everything that make made here
#
# Each makes .venv by itself and brings it up to date when setup.cfg changes.

PYTHON ?= python3
LAB    ?= 1
ARGS   ?=
JOBS   ?= 10000
SEED   ?= 1
PYTHONS ?=

# Debian's packages that tests want beside what pip brings; without them those tests are left out.
PACKAGES := chromium qemu-system-arm firmware-microbit-micropython postgresql \
	nginx-light libnginx-mod-stream mosquitto

VENV       := .venv
BIN        := $(VENV)/bin
READY_DEMO := $(VENV)/.ready-demo
READY_TEST := $(VENV)/.ready-test
READY_DOCS := $(VENV)/.ready-docs

# An editable install carries no kernelspec.
KERNELSPEC := $(BIN)/python -m cm_kernel install --sys-prefix >/dev/null

# An environment whose Python has gone, after an upgrade say, is made anew.
ifneq ($(shell test -x $(BIN)/python && echo alive),alive)
$(shell rm -rf $(VENV))
endif

.PHONY: demo test soak attacks hardware check docs package bench clean
.DELETE_ON_ERROR:
.NOTPARALLEL:

demo: $(READY_DEMO)
	@$(BIN)/mbm demo $(if $(filter 0,$(LAB)),--no-lab)

# First four files at a time, since most tests wait for servers and boards half of their time; those with the longest
# single tests first, so that no process is left with one of them at the end. Then two browsers at a time. Then, alone,
# what compares times, keeps the machine busy by itself, or loses bytes on a busy one (the micro:bit's UART in QEMU).
# Notebooks last, three at a time in processes of their own: pytest-xdist leaves out cells of the same name.
# With ARGS everything that they choose, one after the other.
TOGETHER := $(addprefix tests/,system faults hardware board cm_kernel cm_magics attacks cloudmanager cm_server) $(wildcard tests/test_*.py)
BROWSER := tests/browser
ALONE := tests/cloudmanager/cable/test_bridge.py tests/load
# A test that fails is run once more, since a busy machine can be late; the summary lists it (RERUN), and each is a
# defect of the test or of the code. What fails twice has failed.
RERUN := --reruns 1 --rerun-show-tracebacks -rfER
# The plugin for notebooks takes a second and a half of processor time to import, in each process.
NO_NOTEBOOKS := -p no:nbval
test: check
ifeq ($(ARGS),)
	@$(BIN)/python -m pytest -q $(RERUN) $(NO_NOTEBOOKS) -n 4 --dist loadfile --no-loadscope-reorder \
		$(BROWSER:%=--ignore %) $(ALONE:%=--ignore %) $(TOGETHER)
	@$(BIN)/python -m pytest -q $(RERUN) $(NO_NOTEBOOKS) -n 2 --dist loadfile $(BROWSER)
	@$(BIN)/python -m pytest -q $(RERUN) $(NO_NOTEBOOKS) $(ALONE)
	@printf '%s\n' notebooks/*.ipynb | xargs -P 3 -n 1 $(BIN)/python -m pytest -q --nbval-lax
else
	@$(BIN)/python -m pytest --nbval-lax $(ARGS)
endif

# The minutes of hostile input are part of `make attacks`, not of `make soak`.
LONG_FUZZ := tests/attacks/test_long_fuzz.py

soak: $(READY_TEST)
	@$(BIN)/python -m pytest -m soak --ignore $(LONG_FUZZ) $(ARGS)
	@$(BIN)/python -m tests.faults.soak --jobs $(JOBS) --seed $(SEED)
	@$(BIN)/python -m tests.faults.soak --jobs $$(($(JOBS) / 5)) --seed $(SEED) --tls
	@$(BIN)/python -m tests.faults.waiting --seed $(SEED)
	@$(BIN)/python -m tests.faults.waiting --seed $(SEED) --servers 3
	@$(BIN)/python -m tests.faults.killed_server --seed $(SEED)
	@$(BIN)/python -m tests.faults.rollouts --boards 200 --seed $(SEED)
	@$(BIN)/python -m tests.faults.rollouts --boards 40 --servers 3 --seed $(SEED)
	@$(BIN)/python -m tests.faults.several --jobs $$(($(JOBS) / 2)) --seed $(SEED)

attacks: $(READY_TEST)
	@$(BIN)/python -m tests.attacks $(ARGS)
ifeq ($(ARGS),)
	@$(BIN)/python -m pytest -m soak $(LONG_FUZZ)
endif

hardware: $(READY_TEST)
	@test -n "$(PORT)" || { echo 'make hardware PORT=/dev/ttyACM0 [WIFI=SSID] [RESET="command"]' >&2; exit 2; }
	@$(BIN)/python -m tests.hardware "$(PORT)" $(if $(WIFI),--wifi "$(WIFI)") $(if $(RESET),--reset "$(RESET)") \
		$(if $(SERVER),--server "$(SERVER)") $(if $(LINK),--link "$(LINK)") $(ARGS)

check: $(READY_TEST)
	@$(BIN)/ruff check --quiet .
	@$(BIN)/ruff format --check --quiet . || { echo "run: $(BIN)/ruff format ." >&2; exit 1; }
	@$(BIN)/mypy --no-error-summary
	@$(BIN)/lint-imports --no-logo >$(VENV)/imports.txt || { cat $(VENV)/imports.txt; exit 1; }
	@$(BIN)/codespell
	@$(BIN)/python -m tests.plain_words
	@echo "check: style, types, imports, spelling and words are fine"

docs: $(READY_DOCS)
	@$(BIN)/python -m sphinx -q -W --keep-going -c docs -d build/doctrees . build/site
	@$(BIN)/python -m tests.site_links build/site
	@echo "docs: build/site/index.html"

package: $(READY_TEST)
	@$(BIN)/python -m tests.package $(PYTHONS)

bench: $(READY_TEST)
	@$(BIN)/python -m benchmarks $(ARGS)

clean:
	@echo "removing .venv, caches and builds"
	@rm -rf $(VENV) build dist *.egg-info .mypy_cache .ruff_cache .pytest_cache .hypothesis .import_linter_cache .coverage
	@find . -name __pycache__ -type d -prune -exec rm -rf {} +

# What a user wants for a first look; and what the tests, checks and benchmarks want on top of everything.
$(READY_DEMO): setup.cfg pyproject.toml | $(BIN)/python
	@echo "installing Cloudmanager with JupyterLab and virtual boards into $(VENV)"
	@$(BIN)/python -m pip install -qq -e '.[lab,virtual]'
	@$(KERNELSPEC)
	@touch $@

$(READY_TEST): setup.cfg pyproject.toml | $(BIN)/python
	@echo "installing Cloudmanager with what its tests need into $(VENV)"
	@$(BIN)/python -m pip install -qq -e '.[all,test,dev]'
	@$(KERNELSPEC)
	@if command -v dpkg >/dev/null && ! dpkg -s $(PACKAGES) >/dev/null 2>&1; then \
		if [ "$$(id -u)" = 0 ]; then \
			echo "installing $(PACKAGES)"; \
			apt-get -qq update && DEBIAN_FRONTEND=noninteractive RUNLEVEL=1 \
				apt-get -qq -o DPkg::Lock::Timeout=300 install -y $(PACKAGES) >/dev/null \
				|| echo "some tests are left out: apt-get could not install $(PACKAGES)" >&2; \
		else \
			echo "some tests are left out without: sudo apt-get install $(PACKAGES)" >&2; \
		fi; \
	fi
	@touch $(READY_DEMO) $@

$(READY_DOCS): setup.cfg pyproject.toml | $(BIN)/python
	@echo "installing Cloudmanager with what its site needs into $(VENV)"
	@$(BIN)/python -m pip install -qq -e '.[docs]'
	@touch $@

# Debian keeps ensurepip in a package of its own, python3-venv.
$(BIN)/python:
	@$(PYTHON) -c 'import sys; sys.exit(sys.version_info < (3, 11))' \
		|| { echo "Cloudmanager needs Python 3.11 or later (make PYTHON=python3.12 …)" >&2; exit 1; }
	@if ! $(PYTHON) -c 'import ensurepip, venv' 2>/dev/null; then \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			echo "installing python3-venv"; \
			apt-get -qq update && DEBIAN_FRONTEND=noninteractive apt-get -qq install -y python3-venv >/dev/null; \
		else \
			echo "Python's venv is missing. On Debian or Ubuntu: sudo apt-get install python3-venv" >&2; exit 1; \
		fi; \
	fi
	@echo "making $(VENV)"
	@$(PYTHON) -m venv $(VENV)
