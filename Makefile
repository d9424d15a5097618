# make demo        train the small model on real recordings for ten minutes of 2 cores, and measure it
# make demo-long   the same for up to an hour; hears more
# make test        every test that needs no GPU
# make test-fast   those of them that start no process
# make test-slow   the others: several ranks, training runs, whole tools
# make test-harnesses  the same questions through lmms-eval and EvalScope, in .venv-harnesses
# make faults      a run that is killed at MOMENTS=100 moments, drawn from SEED=0, against the one that is not;
#                  and the faults that a proof must catch
# make fuzz        INPUTS=100000 broken inputs to each parser, TRIES=1000 broken commands, drawn from SEED=0
# make growth      10,000 steps and a million rows: whether memory, handles, threads or a step's time grow (STEPS, ROWS)
# make docs        the documentation as a site, in site/; a link that leads nowhere fails
# make audit       known vulnerabilities of what is locked, and licences that docs/licences.md does not have
# make lint        ruff
# make types       mypy, strict
#
# Each prepares .venv first, with any Python 3.12, 3.13 or 3.14 it finds (or `make test PYTHON=/path/to/python3`),
# and again when pyproject.toml or a lock file (locks/compile.py makes them) changed. Nothing is installed outside .venv.

PYTHON_CANDIDATES = $(or $(PYTHON),.venv/bin/python python3.12 python3.13 python3.14 python3 python \
	$(wildcard $(HOME)/.pyenv/versions/3.1[234]*/bin/python3))
# ensurepip is what Debian leaves out of python3 when python3-venv is not installed.
PYTHON_FITS = import ensurepip, sys, venv; sys.exit(not (3, 12) <= sys.version_info < (3, 15))

RUN = .venv/bin/python
LOCKS = locks/build.lock locks/run.lock locks/dev.lock
# Versions and hashes are those of the lock files, builds included: pip's own build environments know no hashes. pip
# would compile 24,000 modules on one core, a minute of work; compileall has them all.
INSTALL = -m pip install --disable-pip-version-check $(if $(CI),--quiet) --no-compile --no-deps --require-hashes \
	--no-build-isolation
export OMP_NUM_THREADS ?= 1

.DEFAULT_GOAL = help
.PHONY: help demo demo-long test test-fast test-slow test-harnesses faults fuzz growth docs audit lint types

help:
	@sed -n '/^#/!q; s/^# \{0,1\}//p' Makefile

demo: .venv/ready
	$(RUN) tools/demo.py

demo-long: .venv/ready
	$(RUN) tools/demo.py --long

test: .venv/ready
	$(RUN) -m pytest -n 2 --dist worksteal $(ARGS)

test-fast: .venv/ready
	$(RUN) -m pytest -n 2 --dist worksteal -m "not slow" $(ARGS)

test-slow: .venv/ready
	$(RUN) -m pytest -n 2 --dist worksteal -m slow $(ARGS)

test-harnesses: .venv-harnesses/ready
	.venv-harnesses/bin/python -m pytest tests/serve/test_lmms.py $(ARGS)

MOMENTS ?= 100
SEED ?= 0
faults: .venv/ready
	$(RUN) -m tests.prove.planted
	$(RUN) -m tests.faults.kills --moments $(MOMENTS) --seed $(SEED) $(ARGS)

INPUTS ?= 100000
TRIES ?= 1000
fuzz: .venv/ready
	$(RUN) -m tests.faults.fuzz --inputs $(INPUTS) --seed $(SEED) $(ARGS)
	$(RUN) -m tests.faults.entry_points --inputs $(TRIES) --seed $(SEED)

STEPS ?= 10000
ROWS ?= 1000000
growth: .venv/ready
	$(RUN) -m tests.faults.growth --steps $(STEPS) --rows $(ROWS)

docs: .venv/ready
	NO_MKDOCS_2_WARNING=1 $(RUN) -m mkdocs build --strict

audit: .venv/ready
	$(RUN) kubeflow/images/inventory.py licences | diff docs/licences.md -
	$(RUN) -m pip_audit --strict --disable-pip --require-hashes $(addprefix -r ,$(LOCKS) locks/gpu.lock)

lint: .venv/ready
	$(RUN) -m ruff check .

types: .venv/ready
	$(RUN) -m mypy

.venv/ready: pyproject.toml $(LOCKS)
	@for candidate in $(PYTHON_CANDIDATES); do \
		if "$$candidate" -c "$(PYTHON_FITS)" 2>/dev/null; then found="$$candidate"; break; fi; \
	done; \
	if [ -z "$$found" ]; then \
		echo "No fitting Python found: Megatron-AF needs Python 3.12, 3.13 or 3.14 with its venv module." >&2; \
		echo "Looked at: $(strip $(PYTHON_CANDIDATES))." >&2; \
		echo "Install one (Debian, Ubuntu: apt install python3.12 python3.12-venv; any Linux: pyenv install 3.12)" >&2; \
		echo "or name one: make $(MAKECMDGOALS) PYTHON=/path/to/python3.12" >&2; \
		exit 1; \
	fi; \
	echo "Setting up .venv with $$("$$found" --version): 6.9 GB on disk, some minutes the first time."; \
	[ "$$found" = .venv/bin/python ] || "$$found" -m venv --clear .venv
	$(RUN) $(INSTALL) -r locks/build.lock
	$(RUN) $(INSTALL) -r locks/run.lock -r locks/dev.lock
	$(RUN) -m pip install --disable-pip-version-check --quiet --no-deps --no-build-isolation -e .
	@$(RUN) -W ignore -m compileall -qq -j 0 .venv/lib || true
	@touch $@

# Takes what .venv has, and holds beside it what the harnesses want, in versions of their own.
.venv-harnesses/ready: .venv/ready locks/harnesses.lock
	$(RUN) -m venv --clear .venv-harnesses
	$(RUN) -c "import site; print(f'import site; site.addsitedir({site.getsitepackages()[0]!r})')" > \
		"$$(.venv-harnesses/bin/python -c 'import site; print(site.getsitepackages()[0])')/project.pth"
	.venv-harnesses/bin/python $(INSTALL) -r locks/harnesses.lock
	@touch $@
