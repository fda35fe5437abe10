# `make demo` and `make test` do everything on a fresh machine with git, make and Python 3.11, and are quick the second time.

VENV ?= .venv
PYTHON ?= $(shell command -v python3.11 || command -v python3)
BIN = $(VENV)/bin
READY = $(VENV)/.flexvae-ready
DEMO = demo
WORKERS ?= 2

.PHONY: demo test check lint nightly bench bench-long docs pictures clean

demo: $(READY)
	$(BIN)/flexvae train --config configs/quickstart.toml --set train.run_dir=$(DEMO)/run --resume
	$(BIN)/flexvae infer $(DEMO)/run builtin:scenery/val $(DEMO)/reconstructions --overwrite
	@echo "look at $(DEMO)/reconstructions/sheet.png"

# Test processes share the cores: threads that spin while they wait would stall each other.
test nightly: export OMP_WAIT_POLICY = PASSIVE

test: $(READY)
	$(BIN)/pytest -n $(WORKERS)

lint: $(READY)
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy
	$(BIN)/lint-imports

check: test lint

nightly: $(READY)
	FLEXVAE_NIGHTLY=1 $(BIN)/pytest -n $(WORKERS) --timeout=86400

bench: $(READY)
	$(BIN)/python benchmarks/startup.py
	$(BIN)/python benchmarks/speed.py
	$(BIN)/python benchmarks/encode.py
	$(BIN)/python benchmarks/on_cuda.py
	$(BIN)/python benchmarks/exact.py
	$(BIN)/python benchmarks/memory.py

# Trainings on the clock: half an hour and more, on a machine that does nothing else.
bench-long: $(READY)
	$(BIN)/python benchmarks/quickstart.py
	$(BIN)/python benchmarks/dimensions.py
	$(BIN)/python benchmarks/quality.py
	$(BIN)/python benchmarks/quantizers.py

docs: $(READY)
	$(BIN)/python -m flexvae_cli.config.reference > docs/config.md
	$(BIN)/python -m flexvae_cli.layers_reference > docs/layers.md
	$(BIN)/python -m typer flexvae_cli.main utils docs --name flexvae > docs/cli.md

# The README's pictures: the demo's own sheet, and the seed's nets as `inspect` draws them.
pictures: demo
	$(BIN)/python -c "from PIL import Image; Image.open('$(DEMO)/reconstructions/sheet.png').convert('RGB').save( \
		'docs/images/quickstart.jpg', quality=88, optimize=True)"
	$(BIN)/flexvae inspect configs/seed.toml --image docs/images/seed-net.png > /dev/null

clean:
	rm -rf $(DEMO) build dist .pytest_cache .mypy_cache .ruff_cache .import_linter_cache

$(READY): pyproject.toml plugins/flexvae-layers-extra/pyproject.toml plugins/flexvae-layers-quantize/pyproject.toml
	@"$(PYTHON)" -c 'import sys; sys.exit(sys.version_info < (3, 11))' || \
		{ echo "FlexVAE needs Python 3.11 or newer; name one with: make PYTHON=/path/to/python3.11"; exit 1; }
	@"$(PYTHON)" -c 'import ensurepip, venv' || \
		{ echo "Python's venv module is missing; on Debian: apt-get install python3-venv"; exit 1; }
	test -x $(BIN)/python || "$(PYTHON)" -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --disable-pip-version-check -e '.[dev]' \
		-e plugins/flexvae-layers-extra -e plugins/flexvae-layers-quantize
	touch $@
