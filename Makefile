# The two commands: `make reproduce` (the whole study) and `make test`. `make screenshots` renews the README's pictures.
PYTHON ?= python3
BIN := .venv/bin
export HF_HUB_OFFLINE ?= 1

.PHONY: environment reproduce test lint walkthrough clean
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
