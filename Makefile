# Everything happens in .venv; PYTHON chooses what it is made with. Needs Python 3.10 or newer, and make.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-all coverage mutants audit lab lint notebooks student-notebooks figures site bench gpu-check clean

demo: .venv/.installed
	$(BIN)/python -m pckd_nb demo

test: .venv/.installed-dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

# What `make test` leaves out. What is timed runs by itself: two processes that both use all cores slow each other down.
test-slow: .venv/.installed-dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "slow and not alone"
	$(BIN)/python -m pytest -q -m alone

test-all: lint test test-slow

lab: .venv/.installed
	$(BIN)/jupyter lab notebooks --LabApp.default_url=/lab/tree/00_start_here.ipynb

lint: .venv/.installed-dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/python -m mypy

# Known vulnerabilities of all that is installed; asks PyPI's advisory service.
audit: .venv/.installed-audit
	mkdir -p build
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[^ ]*//' > build/audit.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r build/audit.txt

# The share of lines that the tests run, those in subprocesses left out.
coverage: .venv/.installed-dev
	$(BIN)/python -m pytest -q -n auto -m "not alone" --cov pckd_nb --cov-report term-missing:skip-covered --cov-fail-under 95

# Every operator and constant of losses.py and preview.py changed, one at a time: a test has to fail.
mutants: .venv/.installed-dev
	$(BIN)/python -m tests.mutants

# Store the notebooks as executed on the demo's runs.
notebooks: demo
	$(BIN)/python -c "from pckd_nb.notebooks import store_all; store_all('runs/demo')"

# The notebooks without solutions and outputs, for a class.
student-notebooks: .venv/.installed
	$(BIN)/python -c "from pckd_nb.notebooks import write_student_versions; write_student_versions('build/student')"

# Every figure, and the tables of docs/results.md, from the recorded runs.
figures: .venv/.installed
	$(BIN)/python -m pckd_nb figures --runs data/runs --out figures
	$(BIN)/python docs/make_results.py

# The site, from notebooks, docstrings and recorded runs: build/site/html/index.html. Asks no other host for anything.
site: .venv/.installed-site
	$(BIN)/python docs/make_site.py

# Speed, measured side by side on this machine: benchmarks/report.md. Leave the machine alone meanwhile. 20 minutes on
# two slow CPU cores; `python -m benchmarks --full` trains the teachers and takes some hours there.
bench: .venv/.installed-dev
	$(BIN)/python -m benchmarks

# For whoever has a GPU: checks and speed on it, in eight minutes at most: benchmarks/gpu.md.
gpu-check: .venv/.installed-dev
	$(BIN)/python -m benchmarks gpu

.venv/.installed-audit: .venv/.installed-dev
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[audit]"
	touch $@

clean:
	rm -rf .venv build *.egg-info

.venv/bin/python:
	$(PYTHON) -c 'import sys; assert sys.version_info >= (3, 10), "pckd_nb needs Python 3.10 or newer"'
	$(PYTHON) -m venv .venv

.venv/.installed: .venv/bin/python pyproject.toml
	$(BIN)/python -m pip install --disable-pip-version-check -q -e .
	touch $@

.venv/.installed-site: .venv/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[site]"
	touch $@

.venv/.installed-dev: .venv/.installed
	$(BIN)/python -m pip install --disable-pip-version-check -q -e ".[dev]"
	touch $@
