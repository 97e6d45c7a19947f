# `make reproduce` runs the complete quickstart study; `make test` runs the tests.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1
# with this variable, which some containers set, each job would compile what it imports
unexport PYTHONDONTWRITEBYTECODE

.PHONY: environment reproduce test test-fast test-slow test-models test-exchange test-slurm test-storage cloud benchmark lint walkthrough screenshots clean
environment: .venv/.installed

# Of the lines that pip writes: a count for every 20 packages, and large downloads. Ends with an error if pip failed.
define PIP_PROGRESS
/^(Collecting|Processing) / && ++n % 20 == 0 { print "  " n " packages found" }
/^  Downloading .*[0-9][0-9](\.[0-9]+)? MB/ { print "  " $$1, $$2, $$3, $$4 }
/^Installing collected/ { print "  copying the packages into .venv" }
/^failed$$/ { exit 1 }
{ fflush() }
endef
export PIP_PROGRESS

# pip would compile all packages, which takes half of the time. Importing those that jobs import compiles what is needed.
# The stamp is written last, so that an interrupted installation is repeated.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("circuitloom needs Python 3.11 or later; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	@echo "installing about $$(wc -l < requirements.lock) packages in .venv, a few minutes"
	@{ $(BIN)/pip install --no-compile --disable-pip-version-check --progress-bar off -r requirements.lock -e . \
		|| echo failed; } | awk "$$PIP_PROGRESS"
	@echo "  compiling what jobs import"
	@$(BIN)/python -c 'import datasets, duckdb, matplotlib.pyplot, pyarrow, snakemake.cli, torch, transformer_lens, zarr'
	touch $@

reproduce: environment
	$(BIN)/snakemake --cores all

test: environment
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder

# The inner loop: tests of the library alone, on one architecture.
test-fast: environment
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m fast

# Tests that kill processes at random moments, fill disks, train in several processes or take more than ten seconds, and
# the rarer architectures of tests that run on each kind of block.
test-slow: environment
	$(BIN)/python -m pytest -n 2 --dist loadgroup --no-loadscope-reorder -m slow

# The whole workflow, from config to report, on a tiny model of each architecture of docs/models.md.
test-models: environment
	$(BIN)/python -m pytest -n 2 -m models

# Dictionaries, graphs, features and tables, read by the libraries and engines that own the formats, in environments of
# their own, which take most of the time and about 10 GB. moto, which emulates a bucket, is in .cloud. Spark also needs
# Java 17 or later (Debian's default-jre-headless); without it, its tests are skipped, and so is training with SAELens
# without REAL_INPUT, a folder with models/stories260K and data/tinystories.
PEERS := circuit_tracer clickhouse datafusion delphi dictionary_learning polars saelens spark sparsify
test-exchange: environment cloud $(PEERS:%=.peers/%/.installed)
	$(BIN)/python -m pytest -rs -m exchange tests/exchange -k "not bucket"
	PYTHONPATH=$(CURDIR)/.cloud $(BIN)/python -m pytest -rs -m exchange tests/exchange/test_engines.py -k bucket

# Snakemake's plugins for Slurm, Kubernetes and S3, in a folder of their own that PYTHONPATH=.cloud adds: they do not
# change the versions in the environment.
cloud: .cloud/.installed

.cloud/.installed: requirements-cloud.lock .venv/.installed
	rm -rf .cloud
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .cloud -r requirements-cloud.lock
	touch $@

# Run the tiny study on a Slurm of one node that the tests start, about 20 minutes. Installs Debian's slurm-wlm and munge
# if they are missing and apt-get is allowed.
test-slurm: cloud
	@command -v slurmd > /dev/null || test "$$(id -u)" != 0 || ! command -v apt-get > /dev/null \
		|| { echo "installing slurm-wlm and munge" && apt-get update -qq && apt-get install -y -qq slurm-wlm munge; }
	PYTHONPATH=$(CURDIR)/.cloud $(BIN)/python -m pytest -rs tests/slurm

# Results in a local S3 server, from one machine and from the pods of an emulated Kubernetes; about 10 minutes.
test-storage: cloud
	PYTHONPATH=$(CURDIR)/.cloud $(BIN)/python -m pytest -rsx tests/storage tests/kubernetes

# Compare every stage with other libraries, in environments of their own, or with its physical limit; an hour and a half
# on two cores. REAL_INPUT is a folder with models/stories260K and data/tinystories. Writes results/benchmark/record.txt.
benchmark: environment .peers/saelens/.installed .peers/circuit_tracer/.installed
	$(BIN)/snakemake --cores all dictionaries --configfile benchmarks/study.yaml
	$(BIN)/python benchmarks/suite.py

# NAME.no-deps.txt has a library that needs little of what it requires: NAME.txt lists what it imports.
.peers/%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/pip install --quiet --disable-pip-version-check -r $<
	test ! -f $(<:.txt=.no-deps.txt) \
		|| .peers/$*/bin/pip install --quiet --disable-pip-version-check --no-deps -r $(<:.txt=.no-deps.txt)
	touch $@

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check workflow
	$(BIN)/pyright
	$(BIN)/snakemake --lint

# Run docs/walkthrough.ipynb again on results/quickstart.
walkthrough: environment
	$(BIN)/python -m tests.workflow.notebook

# Update the README's pictures with the screenshots that the tests take of quickstart's results.
screenshots: environment
	$(BIN)/python -m pytest tests/explorer/test_real_results.py
	mkdir -p docs/screenshots
	for page in circuit feature try; do cp results/screenshots/quickstart-$$page.png docs/screenshots/$$page.png; done

clean:
	rm -rf results .snakemake
