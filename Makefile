# Every target installs what it needs into .venv. PYTHON is the interpreter that creates .venv: Python 3.10 or newer.
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-slow test-all coverage mutants audit lab lint notebooks student-notebooks figures site bench gpu-check clean

demo: .venv/.installed
	$(BIN)/python -m pckd_nb demo

test: .venv/.installed-dev
	$(BIN)/python -m pytest -q -n auto --dist worksteal -m "not slow"

# Run the tests that `make test` leaves out. Tests that measure time run alone, so that nothing slows them down.
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

# List the known vulnerabilities of all installed packages. This asks PyPI's advisory service.
audit: .venv/.installed-audit
	mkdir -p build
	$(BIN)/python -m pip freeze --exclude-editable | sed 's/+[^ ]*//' > build/audit.txt
	$(BIN)/pip-audit --strict --no-deps --disable-pip -r build/audit.txt

# Measure which lines of the package the tests run. Lines that only run in subprocesses are not counted.
coverage: .venv/.installed-dev
	$(BIN)/python -m pytest -q -n auto -m "not alone" --cov pckd_nb --cov-report term-missing:skip-covered --cov-fail-under 95

# Change every operator and constant of losses.py and preview.py, one at a time. Each time, a test has to fail.
mutants: .venv/.installed-dev
	$(BIN)/python -m tests.mutants

# Run all notebooks on the runs of the demo, and store their outputs.
notebooks: demo
	$(BIN)/python -c "from pckd_nb.notebooks import store_all; store_all('runs/demo')"

# Write the notebooks without solutions and outputs, for a class.
student-notebooks: .venv/.installed
	$(BIN)/python -c "from pckd_nb.notebooks import write_student_versions; write_student_versions('build/student')"

# Draw every figure, and write the tables of docs/results.md, docs/baselines.md and docs/leaderboard.md, from what was
# recorded and published.
figures: .venv/.installed
	$(BIN)/python -m pckd_nb figures --runs data/runs --out figures
	$(BIN)/python docs/make_results.py
	$(BIN)/python docs/make_methods.py
	$(BIN)/python docs/make_leaderboard.py

# Build the site from notebooks, docstrings and recorded runs: build/site/html/index.html. The build needs no network.
site: .venv/.installed-site
	$(BIN)/python docs/make_site.py

# Measure the speed of the package and of a plain training loop, and write benchmarks/report.md. Run nothing else
# meanwhile. It takes 20 minutes on two slow CPU cores. `python -m benchmarks --full` takes some hours there.
bench: .venv/.installed-dev
	$(BIN)/python -m benchmarks

# Check and time the package on a GPU, in at most eight minutes, and write benchmarks/gpu.md.
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
