# make demo   from nothing to a trained, compressing model and a report (about 9 minutes on two CPU cores)
# make test   the tests
# make check  formatter, linter, type checker

PYTHON ?= python3
VENV ?= .venv
RUN = $(VENV)/bin/python
export JAX_PLATFORMS ?= cpu
export TRANSFORMERS_VERBOSITY ?= error

.PHONY: demo test check clean

demo: $(VENV)/installed
	$(RUN) -m launch.demo --config configs/tiny.py

test: $(VENV)/installed
	$(RUN) -m pytest -q

check: $(VENV)/installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(RUN)

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(RUN) -m pip install --disable-pip-version-check --progress-bar on -e '.[demo,test,check]' | grep -v 'already satisfied' || true
	$(RUN) -c 'import lclm_jax'
	touch $@

clean:
	rm -rf $(VENV) runs
