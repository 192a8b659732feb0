# pip install -e ".[dev]" first.
PYTHON ?= python
PYTEST = $(PYTHON) -m pytest

.PHONY: check fix test test-fast cov docs release

check:  ## lint, format, types, spelling
	ruff check .
	ruff format --check .
	$(PYTHON) -m mypy
	typos

fix:  ## what ruff can mend by itself
	ruff check --fix .
	ruff format .

test:  ## all tests
	$(PYTEST)

test-fast:  ## without those that take more than five seconds
	$(PYTEST) -m "not slow"

cov:  ## all tests, and the share of lines and branches that they run
	coverage erase
	coverage run -m pytest
	coverage combine --quiet
	coverage report

docs:  ## the site, in site/; needs pip install -e ".[docs]"
	NO_MKDOCS_2_WARNING=1 mkdocs build --strict

release:  ## the files of a release, checked; .github/workflows/release.yml publishes them
	rm -rf dist build
	$(PYTHON) -m build
	twine check --strict dist/*
