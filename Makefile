# WavCube for s3prl, ESPnet and SpeechBrain. `make help` lists the targets.
PYTHON ?= python3
VENV   := .venv
BIN    := $(VENV)/bin
STAMP  := $(VENV)/.ready
DEMO   ?= demo_output
NANO   ?= nano_work
TTS    ?= tts_output
SUPERB ?= superb_mini

.PHONY: help env demo test lint format lock bench bench-pretraining nano tts superb-mini clean

help:  ## list the targets
	@grep -E '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 20

env: $(STAMP)  ## build .venv from the tested versions (done once; the other targets do it by themselves)

$(STAMP): setup.py constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check uv
	$(BIN)/uv pip install --quiet --python $(BIN)/python --constraint constraints.txt --editable '.[all,dev]'
	$(BIN)/wavcube install-s3prl
	@touch $@

demo: $(STAMP)  ## the main job: real speech through the model and through s3prl, with a report in $(DEMO)/
	$(BIN)/python -m wavcube_plugins.demo --out $(DEMO)

test: $(STAMP)  ## run the test suite, offline
	$(BIN)/python -m pytest tests

lint: $(STAMP)  ## check formatting and style
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(STAMP)  ## format the code
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

lock: $(STAMP)  ## write constraints.txt anew; versions stay unless a requirement forbids them
	$(BIN)/uv pip compile --quiet --universal --python-version 3.10 --all-extras --no-annotate --no-header \
		--output-file constraints.txt setup.py
	sed -i '1i # The versions everything is tested with, for Python 3.10 to 3.12; `make lock` renews this file.' constraints.txt

bench: $(STAMP)  ## speed and memory of encode and decode on this machine
	$(BIN)/python benchmarks/speed.py

bench-pretraining: $(STAMP)  ## seconds and memory of a training step, ours and the reference's way
	$(BIN)/python benchmarks/pretraining.py

nano: $(STAMP)  ## train WavCube-nano from nothing in $(NANO)/, hours on a CPU; resumes
	PYTHON="$(CURDIR)/$(BIN)/python" speechbrain_hparams/pretrain/nano/run.sh $(NANO)

tts: $(STAMP)  ## train zero-shot TTS on synthesised speech with ESPnet in $(TTS)/, 90 minutes of a core; resumes
	espnet_recipe/tts1/run.sh --corpus mini --python "$(CURDIR)/$(BIN)/python" \
		--datadir "$(CURDIR)/$(TTS)/data" --dumpdir "$(CURDIR)/$(TTS)/dump" --expdir "$(CURDIR)/$(TTS)/exp"

superb-mini: $(STAMP)  ## every task of SUPERB on a small synthesised set, through s3prl, in $(SUPERB)/; 100 minutes on two cores, resumes
	$(BIN)/wavcube superb mini $(SUPERB)

clean:  ## remove what the targets made
	rm -rf $(VENV) $(DEMO) build dist *.egg-info
