# Two commands matter: `make book` and `make test`. Each sets up what it needs, from any state.

VENV := .venv
PY := $(VENV)/bin/python
JOBS ?= $(shell getconf _NPROCESSORS_ONLN 2>/dev/null || echo 2)
CH ?=
# The stamp's name changes with what is installed and where; it is written when all is done.
KEY := $(shell (pwd; cat requirements.txt pyproject.toml) | cksum | cut -d' ' -f1)
READY := $(VENV)/ready-$(KEY)
# A stamp is worth nothing where the Python it was made with is gone.
_ := $(shell [ ! -e $(READY) ] || $(PY) -c '' 2>/dev/null || rm -f $(READY))
PYTEST := OMP_NUM_THREADS=1 $(PY) -m pytest -n $(JOBS) --dist loadscope --nbval-lax --nbval-current-env

export PYTHON
.DEFAULT_GOAL := help
.PHONY: help setup book test execute check lint stamp bench study study-quick serve clean distclean

help:  ## list the commands
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  make %-10s %s\n", $$1, $$2}' $(MAKEFILE_LIST)
	@echo "Options: PYTHON=/path/to/python3.12  JOBS=2  CH=04 (one chapter)  ARGS='...' (passed on)"

$(READY):
	@sh tools/setup.sh $(VENV)
	@rm -f $(VENV)/ready-*
	@touch $@

setup: $(READY)  ## install what everything below needs into .venv

book: $(READY)  ## run the chapters that are stale, build the site into _build/html
	@$(PY) tools/book.py build --jobs $(JOBS)

test: $(READY)  ## test the library, every chapter, and the built site
	@$(PYTEST) book tests $(ARGS)

execute: $(READY)  ## re-run the chapters (or CH=04) and store their outputs
	@$(PY) tools/book.py execute --jobs $(JOBS) $(CH)

check: $(READY)  ## test one chapter, CH=04: its form, and a run of it
	@$(PYTEST) -n 0 book/$(CH)*.ipynb tests/test_notebooks.py -k "$(CH)" $(ARGS)

lint: $(READY)  ## check the style of all code, chapters included
	@$(PY) -m ruff check .
	@$(PY) -m ruff format --check seqrec_lib tests tools benchmarks

stamp: $(READY)  ## rewrite what is derived from _config.yml and from the chapters' outputs
	@$(PY) tools/book.py stamp

bench: $(READY)  ## run the timed comparisons (minutes to hours; on an idle machine)
	@for script in benchmarks/[!_]*.py; do echo "== $$script"; $(PY) $$script $(ARGS) || exit 1; done

study: $(READY)  ## run the grid of experiments that is missing in results/
	@OMP_NUM_THREADS=1 $(PY) -m seqrec_lib study run --jobs $(JOBS) $(ARGS)

study-quick: $(READY)  ## rehearse the study on worlds, two seeds, into runs/quick
	@OMP_NUM_THREADS=1 $(PY) -m seqrec_lib study run --grid quick --results runs/quick --jobs $(JOBS)

serve: book  ## build the site and show it at http://localhost:8000
	@$(PY) -m http.server 8000 --bind 127.0.0.1 --directory _build/html

clean:  ## remove what was built, and the caches
	rm -rf _build .pytest_cache .ruff_cache .hypothesis
	find . -name __pycache__ -not -path './$(VENV)/*' -prune -exec rm -rf {} +

distclean: clean  ## remove the environment, too
	rm -rf $(VENV)
