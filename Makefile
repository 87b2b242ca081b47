# WavCube for s3prl, ESPnet and SpeechBrain. `make help` lists the targets.
PYTHON      ?= python3
CONSTRAINTS ?= constraints.txt
VENV        := $(if $(filter constraints.txt,$(CONSTRAINTS)),.venv,.venv-$(basename $(notdir $(CONSTRAINTS))))
BIN         := $(VENV)/bin
STAMP       := $(VENV)/.ready
WORKERS     ?= 2
DEMO        ?= demo_output
NANO        ?= nano_work
TTS         ?= tts_output
SUPERB      ?= superb_mini
FUZZ_CASES  ?= 150

# One thread per test process: two processes with two threads each only wait for each other on two cores.
PYTEST := OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests --numprocesses $(WORKERS) --dist loadgroup --no-loadscope-reorder

.PHONY: help env demo test test-fast fuzz lint format docs lock bench bench-pretraining nano nano-gpu tts superb-mini clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

env: $(STAMP)  ## build .venv from tested versions; runs once, and before any target that needs it

$(STAMP): pyproject.toml setup.py $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint $(CONSTRAINTS) --editable '.[all,dev]'
	$(BIN)/wavcube install-s3prl
	@touch $@

demo: $(STAMP)  ## the main job: real speech through the model and through s3prl, with a report in $(DEMO)/
	$(BIN)/python -m wavcube_plugins.demo --out $(DEMO)

test: $(STAMP)  ## run all tests, offline, in $(WORKERS) processes
	$(PYTEST)

test-fast: $(STAMP)  ## run the tests that take seconds
	$(PYTEST) -m "not slow and not integration"

fuzz: $(STAMP)  ## search for inputs that break the readers and commands, $(FUZZ_CASES) of each of 23 kinds; ten minutes on one core
	FUZZ_CASES=$(FUZZ_CASES) OMP_NUM_THREADS=1 $(BIN)/python -m pytest tests/fuzz --hypothesis-profile long --timeout 7200

lint: $(STAMP)  ## check style, formatting, layers and types
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/lint-imports
	$(BIN)/pyright --pythonpath $(BIN)/python

format: $(STAMP)  ## format the code and sort imports
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

docs: $(STAMP)  ## build the documentation in docs/_build/html, offline; warnings are errors
	$(BIN)/python -m sphinx -W --keep-going -q -b html docs docs/_build/html

LOCK = $(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-annotate --no-header

# ESPnet's setuptools < 74 rules out torch 2.13 and later, which torchaudio 2.11.1 needs although it does not say so.
lock: $(STAMP)  ## update constraints.txt (changes only what must change) and constraints-newest.txt (the newest of all)
	$(LOCK) --output-file constraints.txt pyproject.toml
	sed -i '1i # The versions everything is tested with, for Python 3.10 to 3.12. Update with `make lock`.' constraints.txt
	echo 'torchaudio<2.11.1' | $(LOCK) --upgrade --constraint - --output-file constraints-newest.txt pyproject.toml
	sed -i '1i # The newest versions that resolve. Update with `make lock`, test with `make test CONSTRAINTS=constraints-newest.txt`.' \
		constraints-newest.txt

bench: $(STAMP)  ## speed and memory of encode and decode on this machine
	$(BIN)/python benchmarks/speed.py

bench-pretraining: $(STAMP)  ## seconds and memory of a training step, compared with the reference's way
	$(BIN)/python benchmarks/pretraining.py

nano: $(STAMP)  ## train WavCube-nano from scratch in $(NANO)/; a day and a half on two cores, resumes; run.sh lists its options
	PYTHON="$(CURDIR)/$(BIN)/python" speechbrain_hparams/pretrain/nano/run.sh $(NANO)

nano-gpu: $(STAMP)  ## the same on a GPU: large batches and discriminators; LIMIT=15 ends stage 2 after so many minutes
	GPU=1 LIMIT="$(LIMIT)" PYTHON="$(CURDIR)/$(BIN)/python" speechbrain_hparams/pretrain/nano/run.sh $(NANO)

tts: $(STAMP)  ## train zero-shot TTS on synthesised speech with ESPnet in $(TTS)/, 90 minutes on one core, resumes
	espnet_recipe/tts1/run.sh --corpus mini --python "$(CURDIR)/$(BIN)/python" \
		--datadir "$(CURDIR)/$(TTS)/data" --dumpdir "$(CURDIR)/$(TTS)/dump" --expdir "$(CURDIR)/$(TTS)/exp"

superb-mini: $(STAMP)  ## all SUPERB tasks on small synthesised sets, through s3prl, in $(SUPERB)/; 100 minutes on two cores, resumes
	$(BIN)/wavcube superb mini $(SUPERB)

clean:  ## remove the environment, the builds and the demo's report
	rm -rf $(VENV) $(DEMO) docs/_build build dist *.egg-info
