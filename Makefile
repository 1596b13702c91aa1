venv := .venv
constraints := constraints.txt
python := $(venv)/bin/python
ready := $(venv)/.ready

.PHONY: help setup demo test test-all test-oldest pytest soak gpu lint

help: ## show the targets; each does its own set-up
	@awk -F ':.*## ' '/^[a-z-]+:.*## / { printf "make %-11s %s\n", $$1, $$2 }' $(MAKEFILE_LIST)

setup: $(ready) ## make .venv with everything in it

$(ready): pyproject.toml requirements.txt $(constraints) tools/setup.sh
	@VENV=$(venv) CONSTRAINTS=$(constraints) bash tools/setup.sh
	@touch $@

demo: export OMP_WAIT_POLICY = passive# while other programs run, idle threads that spin would slow it down eightfold
demo: $(ready) ## train on the built-in digits, on the CPU or a GPU, into a new runs/demo; report on it
	rm -rf runs/demo
	$(python) train.py -c configs/demo.yaml run.dir=runs/demo
	$(python) tools/report.py runs/demo --out runs/demo/report.html

test: lint pytest ## lint, then the tests, without those that take long (those for a GPU skip themselves without one)

test-all: test ## everything that test runs, then the tests that take long
	$(python) -m pytest -m "inductor or extended"

test-oldest: constraints-oldest.txt ## the tests with the oldest versions that requirements.txt allows, in .venv-oldest
	$(MAKE) venv=.venv-oldest constraints=$< pytest

constraints-oldest.txt: requirements.txt
	sed -n 's/>=\([0-9.]*\).*/==\1/p' $< >$@

pytest: $(ready)
	# First: these tests fork, which is unsafe after autograd.
	$(python) -m pytest -m "ddp and not inductor and not extended" --numprocesses auto --maxprocesses 2
	$(python) -m pytest -m "not ddp and not inductor and not extended" --numprocesses auto --maxprocesses 4 --dist worksteal

soak: $(ready) ## kill runs, damage data and configs, run many epochs: one table, in under 20 minutes on two cores
	$(python) tests/system/soak.py

gpu: $(ready) ## every measurement that wants a GPU; STEPS="..." picks some, MINUTES=9 ends by then, SMOKE=1 tries all on a CPU
	$(python) tools/gpu.py $(if $(SMOKE),--smoke) $(if $(MINUTES),--minutes $(MINUTES)) $(if $(ALLOW_DIRTY),--allow-dirty) $(STEPS)

lint: $(ready) ## ruff (errors, formatting) and mypy (types)
	$(python) -m ruff check .
	$(python) -m ruff format --check .
	$(python) -m mypy
