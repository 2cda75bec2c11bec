# make demo          everything at work: no camera, broker, GPU or torch needed
# make install       the agent and training, for your own cameras and parts (1.5 GB)
# make test          all tests
# make check         format, lint, types, import rules, then all tests
# make builders      TensorRT-RTX and nvcc for the tests that want them; no GPU (700 MB)
# make faults        the figures of docs/delivery.md at full length (hours; parts of it as root)
# make triggers      a million parts against a known truth (2 minutes)
# make handshake     100 000 parts between a PLC and the agent, in simulated time (6 minutes)
# make demo-bundle   the demo's model, trained again on generated parts (minutes)
# make lock          requirements.txt: what a device installs, with hashes (5 minutes)
#
# Each sets itself up in .venv, from constraints.txt, and does so again only when that changes.

VENV := .venv
BIN := $(VENV)/bin
export PIP_DISABLE_PIP_VERSION_CHECK := 1
export PATH := $(PATH):/usr/sbin:/usr/local/sbin

PYTHON ?= $(shell for python in python3 python3.14 python3.13 python3.12 python3.11; do \
	$$python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null \
	&& command -v $$python && break; done)

# Without build isolation the pinned setuptools builds the package, and no other is fetched.
INSTALL = $(BIN)/python -m pip install --quiet --constraint constraints.txt
INSTALL_PRODUCT = $(INSTALL) setuptools && $(INSTALL) --no-build-isolation --editable

.DELETE_ON_ERROR:
.PHONY: demo install test builders faults triggers handshake check lint format demo-bundle lock clean mosquitto

demo: $(VENV)/installed-run
	$(BIN)/agent demo --parts 120 --rate 600 --report runs/demo.html

install: $(VENV)/installed-train

# The tests' tensors are small: threads would wait for each other longer than they work. Each core
# takes whole files, so that what a file prepares is made once.
test: export OMP_NUM_THREADS := 1
test: $(VENV)/installed-all mosquitto
	$(BIN)/pytest --numprocesses auto --maxprocesses 4 --dist loadfile

builders: $(VENV)/installed-all
	@echo "Installing TensorRT-RTX and nvcc into $(VENV)"
	@$(INSTALL_PRODUCT) '.[nvcc,rtx]'

faults: export OMP_NUM_THREADS := 1
faults: $(VENV)/installed-all mosquitto
	$(BIN)/pytest tests/faults --faults-full

triggers: $(VENV)/installed-all
	$(BIN)/python -m tests.agent.triggers.simulation 1000000 > benchmarks/results/reconcile.json

handshake: $(VENV)/installed-all
	$(BIN)/python -m tests.agent.plc.simulation 100000 > benchmarks/results/plc_handshake.json

check: lint
	$(MAKE) test

lint: $(VENV)/installed-all
	$(BIN)/ruff format --check .
	$(BIN)/ruff check .
	$(BIN)/mypy
	$(BIN)/lint-imports

# Calibrated by ONNX Runtime, so that `agent demo` needs nothing else.
# One thread, so that the number of cores does not change the order of sums, and so the weights.
demo-bundle: export OMP_NUM_THREADS := 1
demo-bundle: $(VENV)/installed-all
	rm -rf build/demo-parts build/demo-bundle
	$(BIN)/python tools/demo_bundle.py build/demo-parts build/demo-bundle
	$(BIN)/agent calibrate --bundle build/demo-bundle --good build/demo-parts/calibration/train \
		--defective build/demo-parts/calibration/test --backend onnxruntime \
		--max-false-reject 0.2%
	mkdir -p runs
	mv build/demo-bundle/calibration.html runs/demo-calibration.html
	rm -rf agent/demo_bundle
	mv build/demo-bundle agent/demo_bundle

lock: $(VENV)/made
	$(BIN)/python tools/lock.py

format: $(VENV)/installed-all
	$(BIN)/ruff format .
	$(BIN)/ruff check --fix .

clean:
	rm -rf $(VENV) build *.egg-info .mypy_cache .pytest_cache .ruff_cache .import_linter_cache

# What runs on a device: neither torch nor a test tool.
$(VENV)/installed-run: $(VENV)/made pyproject.toml constraints.txt
	@echo "Installing the agent into $(VENV) (2 to 3 minutes, 570 MB)"
	@$(INSTALL_PRODUCT) '.[cpu,demo]'
	@touch $@

$(VENV)/installed-train: $(VENV)/made pyproject.toml constraints.txt
	@echo "Installing the agent and training into $(VENV) (3 minutes, 1.5 GB)"
	@$(INSTALL_PRODUCT) '.[cpu,demo,train]'
	@touch $@

$(VENV)/installed-all: $(VENV)/made pyproject.toml constraints.txt
	@echo "Installing the agent, training and test tools into $(VENV)"
	@$(INSTALL_PRODUCT) '.[benchmarks,cpu,demo,opcua,shipper,timm,train,dev]'
	@touch $@

$(VENV)/made:
	@test -n "$(PYTHON)" || { echo "No Python 3.11 or newer found; install one, or name it:" \
		"make PYTHON=/path/to/python3.11" >&2; exit 1; }
	@"$(PYTHON)" -m venv --clear $(VENV) || { echo "$(PYTHON) cannot make a virtual environment;" \
		"on Debian and Ubuntu: apt-get install python3-venv" >&2; exit 1; }
	@touch $@

# The tests of delivery want a real broker. Where we may not install one they skip and say so.
mosquitto:
	@command -v mosquitto >/dev/null && exit 0; \
	apt=$$(command -v apt-get) || apt=; \
	if [ -n "$$apt" ] && [ "$$(id -u)" = 0 ]; then sudo=; \
	elif [ -n "$$apt" ] && sudo -n true 2>/dev/null; then sudo="sudo -n"; \
	else apt=; fi; \
	if [ -n "$$apt" ]; then \
		echo "Installing mosquitto with apt-get"; \
		{ $$sudo apt-get -qq update && $$sudo env DEBIAN_FRONTEND=noninteractive \
			apt-get -qq install --yes --no-install-recommends mosquitto; } >/dev/null 2>&1; \
	fi; \
	command -v mosquitto >/dev/null \
		|| echo "mosquitto is missing: the tests that need it will be skipped"
