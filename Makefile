# make serve        install what is missing, check serve_config.yaml, start, watch until ready
# make specialists DATA=<folder>
#                   from questions and answers to twelve adapters in the catalogue and a report;
#                   ARGS='--first score', for example, continues with answers made elsewhere
# make test         unit, parity and end-to-end tests on real Ray Serve (7 minutes on 2 quiet cores, 16 on slow ones)
# make test-long    everything, the long tests too
# make chaos        break a small clinic under load, with a ledger of every request (10 minutes at most)
# make bench        measure on this machine's CPU, beside llama.cpp and PEFT (15 minutes at most)
# make bench-gpu    measure on this machine's NVIDIA GPUs, side by side (10 minutes at most); needs root;
#                   ARGS='--site FOLDER' names a folder with vLLM, where this environment has none
# make check        format, lint, types, fast tests (2 minutes at most)

PYTHON ?= python3
CONFIG ?= serve_config.yaml
# Prints the interpreter of an environment that has what is needed, and installs that first.
install = $$(PYTHON="$(PYTHON)" sh scripts/install.sh $(1))
# A worker takes whole files, in the order of tests/conftest.py: the slow ones first. One that dies
# ends the run: pytest-xdist would wait for the rest of its file without an end.
by_file = --dist loadfile --no-loadscope-reorder --max-worker-restart 0
# One that hangs ends the run too, with the trace of each of its threads.
ends = -o faulthandler_timeout=900 -o faulthandler_exit_on_timeout=true

.PHONY: help serve specialists test test-long chaos bench bench-gpu check
help:
	@grep '^# make' Makefile | cut -c3-

serve:
	@python=$(call install,serve) && exec "$$python" -W ignore -m deployments.launch $(CONFIG)

specialists:
	@test -n "$(DATA)" || { echo "make specialists: give DATA=<folder of .jsonl files>" >&2; exit 2; }
	@python=$(call install,train) && "$$python" -m scripts.make_specialists --data "$(DATA)" $(ARGS)

test:
	@python=$(call install,test) && "$$python" -m pytest $(ends) -n logical $(by_file) --ignore tests/e2e -m "not alone and not long" \
	  && "$$python" -m pytest $(ends) tests/e2e -n 2 $(by_file) --durations 15 -m "not alone and not long" \
	  && "$$python" -m pytest $(ends) $$(grep -rl --include 'test_*.py' mark.alone tests) -m "alone and not long"

test-long:
	@python=$(call install,long) && "$$python" -m pytest

chaos:
	@python=$(call install,test) && "$$python" -W ignore -m scripts.chaos $(ARGS)

bench:
	@python=$(call install,bench) && "$$python" -W ignore -m scripts.benchmark peers --out runs/bench/peers.json $(ARGS)

bench-gpu:
	@python=$(call install,bench) && "$$python" -W ignore -m scripts.benchmark gpu --out runs/bench/gpu.json $(ARGS)

check:
	@python=$(call install,dev) && "$$python" -m ruff format --check . && "$$python" -m ruff check . \
	  && "$$python" -m mypy \
	  && "$$python" -m pytest -q -n logical $(by_file) --ignore tests/e2e -m "not base_model and not slow and not long"
