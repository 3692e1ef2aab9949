# Two commands do everything on a fresh machine: `make search` and `make test`.

PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
SEARCH ?= --data photos --order 2 --init_channels 4 --layers 4 --batch_size 32 --max_images 320 --epochs 5

.PHONY: install search test lint

# torchvision pins the torch it was built with, so the two are resolved together.
install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml setup.py
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --editable '.[search,dev]'
	touch $@

search: install
	$(BIN)/dartsfast search cnn $(SEARCH)

test: install lint
	$(BIN)/python -m pytest

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
