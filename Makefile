# The two commands: `make reproduce` (the whole study) and `make test`. `make screenshots` renews the README's pictures.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: environment reproduce test test-slurm test-storage cloud benchmark lint walkthrough screenshots clean
environment: .venv/.installed

# The stamp is made last, so that an interrupted installation is taken up again.
.venv/.installed: requirements.lock pyproject.toml
	$(PYTHON) -c 'import sys; sys.exit("circuitloom needs Python 3.11 or later; set PYTHON=/path/to/python3.11") if sys.version_info < (3, 11) else None'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --disable-pip-version-check torch==2.13.0
	$(BIN)/pip install --quiet --disable-pip-version-check -r requirements.lock
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps -e .
	touch $@

reproduce: environment
	$(BIN)/snakemake --cores all

test: environment lint
	$(BIN)/python -m pytest -n 2 --dist loadgroup

# Plugins of Snakemake for Slurm, Kubernetes and S3 lie beside the environment, whose versions they do not touch;
# PYTHONPATH=.cloud finds them.
cloud: .cloud/.installed

.cloud/.installed: requirements-cloud.lock .venv/.installed
	rm -rf .cloud
	$(BIN)/pip install --quiet --disable-pip-version-check --no-deps --target .cloud -r requirements-cloud.lock
	touch $@

# The tiny study through a Slurm of one node that is started here, about 20 minutes. Installs Debian's slurm-wlm and
# munge where they are missing and apt-get may be used.
test-slurm: cloud
	@command -v slurmd > /dev/null || test "$$(id -u)" != 0 || ! command -v apt-get > /dev/null \
		|| { echo "installing slurm-wlm and munge" && apt-get update -qq && apt-get install -y -qq slurm-wlm munge; }
	PYTHONPATH=$(CURDIR)/.cloud $(BIN)/python -m pytest -rs tests/slurm

# Results in a local S3 server, on one machine and from the pods of a stand-in for Kubernetes; about 10 minutes.
test-storage: cloud
	PYTHONPATH=$(CURDIR)/.cloud $(BIN)/python -m pytest -rsx tests/storage tests/kubernetes

# Every stage beside its peers, which get environments of their own, or its limit; an hour and a half on two cores. REAL_INPUT is a
# folder with models/stories260K and data/tinystories. The record is results/benchmark/record.txt.
benchmark: environment .peers/saelens/.installed .peers/circuit_tracer/.installed
	$(BIN)/snakemake --cores all dictionaries --configfile benchmarks/study.yaml
	$(BIN)/python benchmarks/suite.py

.peers/%/.installed: benchmarks/peers/%.txt
	$(PYTHON) -m venv .peers/$*
	.peers/$*/bin/pip install --quiet --disable-pip-version-check torch==2.13.0
	.peers/$*/bin/pip install --quiet --disable-pip-version-check -r $<
	touch $@

lint: environment
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/snakefmt --check workflow
	$(BIN)/pyright
	$(BIN)/snakemake --lint

# docs/walkthrough.ipynb, run anew on results/quickstart
walkthrough: environment
	$(BIN)/python -m tests.workflow.notebook

# The README's pictures: those that the tests make of quickstart's results.
screenshots: environment
	$(BIN)/python -m pytest tests/explorer/test_real_results.py
	mkdir -p docs/screenshots
	for page in circuit feature try; do cp results/screenshots/quickstart-$$page.png docs/screenshots/$$page.png; done

clean:
	rm -rf results .snakemake
