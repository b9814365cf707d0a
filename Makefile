PYTHON ?= python3
# where `make setup` installs; `make VENV= TARGET` takes the environment that is active, and installs nothing
VENV ?= .venv
RUN := $(if $(VENV),. $(VENV)/bin/activate &&)

RUNS ?= runs/results

.PHONY: help setup dev repro report results share leaderboard verify-cache test test-slow test-faults bench gpu scale check docs generated clean-scratch

help:  ## list the targets; VENV= before one takes the active environment
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | awk -F ':.*## ' '{printf "  make %-14s %s\n", $$1, $$2}'

setup: $(if $(VENV),$(VENV)/.installed)  ## create .venv and install the pinned requirements

dev: $(if $(VENV),$(VENV)/.installed-dev)  ## setup, and what tests and checks need

repro: setup  ## run the pipeline (dvc repro), its check first; what has not changed is not run again
	$(RUN) dvc repro check && dvc repro

report: setup  ## tell what the pipeline has learnt on one page, metrics/report.html; EXP="a b": beside experiments
	$(RUN) python -m sightline.report $(if $(EXP),--exp $(EXP))

results: setup  ## make the tables of docs/results.md again, hours; goes on where it was (benchmarks/results.sh)
	$(RUN) bash benchmarks/results.sh $(RUNS)

share: setup  ## push outputs and the run cache to the default remote
	$(RUN) dvc push --run-cache

leaderboard: setup  ## experiments, what was changed in them, and the figures that matter; ARGS="--sort rmse"
	$(RUN) python tools/leaderboard.py $(ARGS)

verify-cache: setup  ## find files of DVC's cache that were changed behind its back
	$(RUN) python tools/verify_cache.py

test: dev  ## run the tests
	$(RUN) OMP_NUM_THREADS=1 pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder -m "not slow"

test-slow: dev  ## run the tests that take minutes each
	$(RUN) OMP_NUM_THREADS=1 pytest -n 2 --max-worker-restart 0 --dist loadfile --no-loadscope-reorder -m slow

test-faults: dev  ## kill every stage at random moments, damage every file: ten minutes or more; writes docs/reliability.md
	$(RUN) FAULTS=many OMP_NUM_THREADS=1 python tests/faults/reliability.py

bench: setup  ## measure speed against other ways and bounds, and write docs/benchmarks.md
	$(RUN) python benchmarks/bench.py --write .

gpu: setup  ## where there is a GPU: measure what only it can tell, in eight minutes, and write docs/gpu.md
	$(RUN) python benchmarks/gpu.py

scale: setup  ## measure growth with the data, and write docs/scale.md; after make bench
	$(RUN) python benchmarks/scale.py --write .

check: dev  ## run the linter, the formatter and the type checker
	$(RUN) ruff check . && ruff format --check . && mypy

docs: dev  ## build the site of the documentation into site/; strict: every link must lead somewhere
	$(RUN) NO_MKDOCS_2_WARNING=1 mkdocs build --strict

generated: dev  ## write the pages, help texts and tables that commands generate
	$(RUN) python tools/parameters.py && python tools/pipeline.py && python tools/commands.py && python tools/api.py

clean-scratch:  ## delete interrupted work and cached per-image results; always safe
	rm -rf .scratch

$(VENV)/.installed: requirements.txt pyproject.toml
	@$(PYTHON) -c 'import sys; v = sys.version_info[:2]; sys.exit(0 if v in {(3, 11), (3, 12)} else "Python 3.11 or 3.12 is needed, not %d.%d; name one: make PYTHON=python3.12" % v)'
	$(PYTHON) -m venv $(VENV)
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements.txt --editable .
	@touch $@

$(VENV)/.installed-dev: $(VENV)/.installed requirements-dev.txt requirements-docs.txt
	$(VENV)/bin/python -m pip install --quiet --disable-pip-version-check --requirement requirements-dev.txt
	@touch $@
