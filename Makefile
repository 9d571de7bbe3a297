# Two commands for a newcomer: `make demo` and `make test`. The environment is built once, in .venv, and the servers that
# the tests talk to in .cache/servers.
PYTHON ?= $(shell command -v python3.11 || command -v python3)
VENV := .venv
BIN := $(VENV)/bin
READY := $(VENV)/.ready
SERVERS := .cache/servers
PIP_INSTALL := -m pip install --quiet --disable-pip-version-check

.PHONY: demo test test-gpu test-rgw lint stress servers clean
.DELETE_ON_ERROR:

demo: $(READY)
	$(BIN)/s3dlio demo

# These wait for processes and servers half of the time: they run beside the others, and are told last.
BESIDE := tests/frameworks tests/objectstores tests/perf

test: $(READY) servers
	$(BIN)/python -m pytest $(BESIDE) > .cache/beside.log 2>&1 & beside=$$!; \
	$(BIN)/python -m pytest $(BESIDE:%=--ignore=%); others=$$?; \
	wait $$beside; beside=$$?; cat .cache/beside.log; exit $$((others | beside))

test-gpu: $(READY)
	$(BIN)/python -m pytest -m gpu

test-rgw: $(READY)
	$(BIN)/python -m pytest -m rgw

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports --no-logo

stress: $(READY) servers
	$(BIN)/python -m pytest tests/stress -m stress -o faulthandler_timeout=600

servers: $(SERVERS)/localstack/.ready $(SERVERS)/moto/.ready $(SERVERS)/azurite/.ready

clean:
	rm -rf $(VENV) $(SERVERS) build dist *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache .hypothesis
	find engine s3dlio perf tests -name __pycache__ -type d -prune -exec rm -rf {} +

$(READY): pyproject.toml
	test -x $(BIN)/python || $(PYTHON) -m venv $(VENV)
	$(BIN)/python $(PIP_INSTALL) --editable '.[dev]'
	touch $@

# LocalStack and moto pin other versions of packages than ours: each has an environment of its own.
$(SERVERS)/%/.ready: tests/servers/%.txt
	rm -rf $(@D)
	$(PYTHON) -m venv $(@D)
	$(@D)/bin/python $(PIP_INSTALL) --requirement $<
	touch $@

$(SERVERS)/azurite/.ready: tests/servers/azurite.json
	rm -rf $(@D)
	mkdir -p $(@D)
	cp $< $(@D)/package.json
	npm install --prefix $(@D) --no-package-lock --no-audit --no-fund --silent
	touch $@
