python := .venv/bin/python
ready := .venv/.ready

.PHONY: help setup demo test lint

help: ## show the targets; each does its own set-up
	@awk -F ':.*## ' '/^[a-z]+:.*## / { printf "make %-7s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(ready) ## make .venv with everything in it

$(ready): requirements.txt constraints.txt tools/setup.sh
	@bash tools/setup.sh
	@touch $@

demo: $(ready) ## train on the built-in digits, on the CPU or a GPU, into a new runs/demo
	rm -rf runs/demo
	$(python) train.py -c configs/demo.yaml run.dir=runs/demo

test: lint ## lint, then all tests (those for a GPU skip themselves without one)
	$(python) -m pytest

lint: $(ready) ## ruff: errors and formatting
	$(python) -m ruff check .
	$(python) -m ruff format --check .
