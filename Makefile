# make show   what a small trained model, committed here, makes of held-out text (about a minute)
# make demo   the same, then from nothing to a trained, compressing model and a report (about 8 minutes on two CPU cores)
# make test   the tests, two files at a time
# make fuzz   the tests that draw their input at random, with LCLM_FUZZ=2000 examples each, not 50
# make check  formatter, linter, type checker
# make docs   the documentation as a site in runs/site; a dead link is an error
# make figures  density and length of the code, and imports between its rooms (seconds); docs/results/code.md
# make parity agreement with transformers' models, in an environment of its own with torch (about 3 minutes)
# make capacity-report  compiles the published recipe for common slices and compares its figures with tests/data/capacity.json;
#             in environments of its own with libtpu and the CUDA plugin of jax (5 GB; about an hour; PYTHON=python3.12, as for
#             docs/capacity.md; ACCEPT=1 rewrites it)
# make bench  training, encoding, first token and decoding beside plain PyTorch, in the environment of parity (about 2 minutes)
# make bench-data  speed of preparation and loading on the standard library, and the cores that feed a slice (about 2 minutes)
# make bench-inference  what compression, stores, kept caches and batches save, in one run on any device (about 20 minutes on two
#             CPU cores); run again, it measures only what is missing; LIMIT=3000 also reads 64k to 256k tokens as text (an hour)
# make evaluation-report  scores of the small model from latents, text and controls: docs/results/evaluation (4 minutes)
# make accelerator  whether the system is right on this machine's GPU or TPU, and how fast, in eight minutes; RUN=python takes
#             an environment that has jax for it already; on a CPU tiny models are measured, to test the command
# make soak   a run that is killed 30 times and meets a full disk, damaged files, late data and NaN equals one left alone (5 minutes)
# make mutants  small wrong changes, each of which a test must notice: docs/results/mutants.md; in one file with
#             FILES=lclm_jax/training/optim.py (minutes), by default in all (a night)
# make bench-convert  speed and memory of the converter on the published shapes (about 20 GB of disk, 10 minutes)

PYTHON ?= python3
VENV ?= .venv
EXTRAS ?= demo,test,check
RUN = $(VENV)/bin/python
MUTMUT = nice $(CURDIR)/.mutants/bin/python -m mutmut
export JAX_PLATFORMS ?= cpu
export TRANSFORMERS_VERBOSITY ?= error

.PHONY: show demo test fuzz check docs figures parity capacity-report bench bench-data bench-inference evaluation-report accelerator soak mutants bench-convert clean

show: $(VENV)/installed
	$(RUN) -m launch.show --config configs/small.py --checkpoint tests/data/models/small

demo: show
	$(RUN) -m launch.demo --config configs/tiny.py

# A worker that crashes ends the run: with a replacement, pytest-xdist may wait for ever.
test: $(VENV)/installed
	$(RUN) -m pytest -q -n 2 --dist loadfile --max-worker-restart 0

fuzz: $(VENV)/installed
	LCLM_FUZZ=$(or $(LCLM_FUZZ),2000) $(RUN) -m pytest -q -n 2 -m fuzz

parity: .parity/installed
	.parity/bin/python -m pytest -q -n 2 --dist loadfile tests/parity

# Interrupted, `.capacity/bin/python -m launch.bench.capacity` goes on.
capacity-report: .capacity/installed .gpu/installed
	rm -rf runs/capacity
	.capacity/bin/python -m launch.bench.capacity $(if $(ACCEPT),--accept)

bench: .parity/installed
	.parity/bin/python -m launch.bench

bench-data: $(VENV)/installed
	rm -rf runs/bench-data
	$(RUN) -m launch.bench.data runs/bench-data

# jax chooses the device itself: JAX_PLATFORMS is set above for everything else.
bench-inference: $(VENV)/installed
	env -u JAX_PLATFORMS $(RUN) -m launch.bench.inference --out runs/bench-inference $(if $(LIMIT),--limit $(LIMIT))

evaluation-report: $(VENV)/installed
	rm -rf runs/lookup runs/evaluation
	$(RUN) -m convert.from_hf tests/data/models/small runs/lookup
	$(RUN) -m launch.efficiency --checkpoint runs/lookup --lengths 32,64,96,128,192,256 --out runs/evaluation
	$(RUN) -m launch.evaluate --checkpoint runs/lookup --tasks lookups --lengths 32,64,96,128,192,256 \
		--limit 200 --out runs/evaluation

accelerator:
	env -u JAX_PLATFORMS $(RUN) -m launch.bench.accelerator --minutes 8 --out runs/accelerator

soak: $(VENV)/installed
	$(RUN) -m tests.soak runs/soak

# In a copy of the last commit, without `typed`: mutmut changes no function with a decorator.
mutants: .mutants/installed
	rm -rf runs/mutants && mkdir -p runs/mutants
	git archive HEAD | tar -x -C runs/mutants
	find runs/mutants/lclm_jax -name '*.py' -exec sed -i '/^ *@typed$$/d' {} +
	cd runs/mutants && $(MUTMUT) run --max-children 1 $(patsubst %.py,'%.*',$(subst /,.,$(FILES)))
	cd runs/mutants && $(MUTMUT) results

bench-convert: $(VENV)/installed
	rm -rf runs/bench-convert
	$(RUN) -m launch.bench.convert runs/bench-convert

check: $(VENV)/installed
	$(VENV)/bin/ruff format --check .
	$(VENV)/bin/ruff check .
	$(VENV)/bin/pyright --pythonpath $(RUN)

docs: .docs/installed
	.docs/bin/python -m mkdocs build --strict --quiet

figures: $(VENV)/installed
	$(RUN) -m launch.bench.code

$(VENV)/installed: pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(RUN) -m pip install --quiet --disable-pip-version-check --upgrade pip
	$(RUN) -m pip install --disable-pip-version-check --progress-bar on -e '.[$(EXTRAS)]' | grep -v 'already satisfied' || true
	$(RUN) -c 'import lclm_jax'
	touch $@

.parity/installed: pyproject.toml
	$(PYTHON) -m venv .parity
	.parity/bin/python -m pip install --disable-pip-version-check --progress-bar on -e '.[test,parity]' | grep -v 'already satisfied' || true
	.parity/bin/python -c 'import torch, lclm_jax'
	touch $@

.capacity/installed .gpu/installed .mutants/installed: .%/installed: pyproject.toml
	$(PYTHON) -m venv .$*
	.$*/bin/python -m pip install --disable-pip-version-check --progress-bar on -e '.[$*]' | grep -v 'already satisfied' || true
	.$*/bin/python -c 'import lclm_jax'
	touch $@

# The API reference is read from the source: the package itself is not installed.
.docs/installed: pyproject.toml
	$(PYTHON) -m venv .docs
	.docs/bin/python -m pip install --quiet --disable-pip-version-check $$(.docs/bin/python -c 'import tomllib; print(*tomllib.load(open("pyproject.toml", "rb"))["project"]["optional-dependencies"]["docs"])')
	touch $@

clean:
	rm -rf $(VENV) .venv312 .parity .capacity .gpu .docs .mutants runs
