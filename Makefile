PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin

.PHONY: install oldest wheel docs quickstart test test-hardware test-slow test-browser quality help

help:
	@echo "make quickstart      install, pretrain a small ViT on embedded photographs and probe it (5 minutes on 2 cores)"
	@echo "make test            install and run the tests (offline, CPU)"
	@echo "make test-hardware   the tests twice: on a CPU that computes in bf16, and on one that does not"
	@echo "make test-slow       install (with Ray) and run the tests that take minutes: kills, machines, faults, other versions"
	@echo "make test-browser    install Debian's chromium, and move every control of the demo in it"
	@echo "make docs            build the pages of docs/, where a warning is an error"
	@echo "make wheel           install what pip installs, not the clone, and run the README's first commands with it"
	@echo "make quality         install and run the linters"

install: $(VENV)/.installed

$(VENV)/.installed: setup.cfg pyproject.toml
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[dev]"
	touch $@

# the lower bounds of setup.cfg
oldest: install
	$(BIN)/python -c "import configparser; c = configparser.ConfigParser(); c.read('setup.cfg'); \
		print(c['options']['install_requires'].replace('>=', '=='))" > $(VENV)/oldest.txt
	$(BIN)/python -m pip install --disable-pip-version-check --requirement $(VENV)/oldest.txt

wheel: install
	rm -rf build $(VENV)/wheel
	$(BIN)/python -m pip install --disable-pip-version-check --no-deps --target $(VENV)/wheel .
	rm -rf build
	cd $(VENV) && export PYTHONPATH=wheel && ./bin/python -P -m modeling_kamim pretrain --model_type vit \
		--model_size tiny --max_steps 3 --use_cpu --output_dir wheel/mine
	cd $(VENV) && export PYTHONPATH=wheel && ./bin/python -P -m modeling_kamim evaluate --protocol knn \
		--model_name_or_path wheel/mine --use_cpu --output_dir wheel/probe

$(VENV)/.installed-docs: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[docs]"
	touch $@

docs: $(VENV)/.installed-docs
	$(BIN)/python -m sphinx --nitpicky --fail-on-warning --keep-going --quiet -b html docs docs/_build/html

quickstart: install
	$(BIN)/python examples/quickstart.py

test: install
	$(BIN)/python -m pytest -n auto --maxprocesses 8

test-hardware: install
	for answer in on off; do \
		KAMIM_TEST_BF16=$$answer PYTHONPATH=$(CURDIR)/tests/support/forced_bf16 \
			$(BIN)/python -m pytest -n auto --maxprocesses 8 || exit 1; \
	done

$(VENV)/.installed-ray: $(VENV)/.installed
	$(BIN)/python -m pip install --disable-pip-version-check --editable ".[ray]"
	touch $@

test-slow: $(VENV)/.installed-ray
	$(BIN)/python -m pytest -m slow

test-browser: install
	command -v chromium > /dev/null || apt-get install --yes --quiet chromium || sudo apt-get install --yes --quiet chromium
	$(BIN)/python -m pytest -m "slow or not slow" tests/demo

quality: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
