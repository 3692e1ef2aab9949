# Everything on a fresh machine is a command: `make search`, `make train`, `make speed` and `make test`.

PYTHON ?= python3
VENV ?= .venv
OLDEST ?= .venv-oldest
BIN := $(VENV)/bin
SEARCH ?= --data photos --order 2 --init_channels 4 --layers 4 --batch_size 16 --max_images 320 --epochs 8 \
	--arch_learning_rate 3e-3
TRAIN ?= --data photos --init_channels 8 --layers 5 --batch_size 32 --max_images 640 --epochs 10 --drop_path_prob 0
# The cell to train: the newest that a search found, where none is named.
CELL ?= $(shell ls -dt runs/cnn-*/genotype.json 2>/dev/null | head -n 1)

.PHONY: install install-oldest search train speed test quick test-oldest interpret lint gpu gpu-rehearsal sanitize \
	sanitize-address sanitize-undefined bench

# torchvision pins the torch it was built with, so the two are resolved together; the native kernels are
# then built with that torch, not with a second copy in a build environment. Of the thousands of modules that
# come along few are ever imported: Python compiles those (--no-compile).
install: $(BIN)/.installed

$(BIN)/.installed: pyproject.toml setup.py $(wildcard csrc/*.h csrc/cpu/* csrc/ops/*)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/pip install --quiet --no-compile torch torchvision 'setuptools>=68' wheel ninja
	$(BIN)/pip install --quiet --no-compile --no-build-isolation --editable '.[search,export,tables,dev]'
	touch $@

search: install
	$(BIN)/dartsfast search cnn $(SEARCH)

train: install
	$(if $(CELL),,$(error no cell to train: `make search` finds one, or name one: `make train CELL=DARTS_V2`))
	$(BIN)/dartsfast train cnn $(CELL) $(TRAIN)

# Iterations of the paper's search network, ours and stock PyTorch's in turn: small batches, so that it takes minutes.
speed: install
	$(BIN)/python -m bench cnn_step --batch 8 --repeats 1 --out runs/speed
	$(BIN)/python -m bench report runs/speed

# Linters and rehearsal are one process each, and run side by side. The Triton kernels are compiled for GPUs in the
# first run of pytest, and run in Triton's interpreter in the second. Two processes of one thread: most of it is
# Python, and tests of several threads ask for them.
test: install
	$(MAKE) --jobs=2 --output-sync=target lint gpu-rehearsal
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal
	$(MAKE) interpret

# What a change breaks first, for daily work: a process of one thread a core, as above.
quick: install
	OMP_NUM_THREADS=1 $(BIN)/python -m pytest --quick -n 2 --dist worksteal

# The oldest torch that is supported: the kernels compile with its headers, and the library that was built with
# today's runs there (its slow portable kernels have run with today's).
TORCH_TARGET = $(shell sed -n 's/.*"TORCH_TARGET_VERSION", "\([^"]*\)".*/\1/p' setup.py)

test-oldest: install install-oldest
	printf '%s\n' csrc/ops/*.cpp csrc/cpu/*.cpp | xargs -n 1 -P 2 \
		$(CXX) -fsyntax-only -std=c++20 -fvisibility=hidden -DTORCH_TARGET_VERSION=$(TORCH_TARGET) \
		-Icsrc/cpu -isystem $(OLDEST)/lib/python3*/site-packages/torch/include
	OMP_NUM_THREADS=1 $(OLDEST)/bin/python -m pytest -n 2 --dist worksteal -k "not portable" tests/test_golden.py tests/test_native.py tests/test_ops.py tests/test_fd_hvp.py \
		tests/test_norm_stats.py tests/test_cross_entropy.py tests/test_bilevel.py tests/test_capture.py \
		tests/test_bench.py::test_every_case_passes_its_gate

install-oldest: $(OLDEST)/.installed

$(OLDEST)/.installed:
	$(PYTHON) -m venv $(OLDEST)
	$(OLDEST)/bin/pip install --quiet --no-compile torch==2.11.0 torchvision==0.26.0 numpy rich matplotlib tensorboard \
		pytest pytest-xdist
	touch $@

# The interpreter is Python on one core: two processes, and the longest tests first, so that both end together.
interpret: install
	TRITON_INTERPRET=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n 2 --dist worksteal tests/triton_kernels tests/triton_ladder \
		tests/test_ops.py tests/test_fd_hvp.py tests/test_norm_stats.py

# On a machine with a GPU and torch: nothing is installed, PYTHON's own packages serve.
gpu:
	$(PYTHON) bench/gpu_check.py

# Every stage of it without a GPU, with threads that leave the cores to what runs beside.
gpu-rehearsal: install
	OMP_WAIT_POLICY=passive $(BIN)/python bench/gpu_check.py --rehearse --out runs/gpu-rehearsal

lint: install
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .
	$(BIN)/mypy

# The op tests on kernels built with AddressSanitizer, then with UBSan, beside the installed ones.
SANITIZED = PYTHONMALLOC=malloc ASAN_OPTIONS=detect_leaks=0 UBSAN_OPTIONS=halt_on_error=1:print_stacktrace=1 OMP_NUM_THREADS=2

PRELOAD = $(shell $(CXX) -print-file-name=$(if $(filter address,$*),libasan.so,libubsan.so)):$(shell $(CXX) -print-file-name=libstdc++.so)

sanitize: sanitize-address sanitize-undefined

sanitize-address sanitize-undefined: sanitize-%: install
	DARTSFAST_SANITIZE=$* $(BIN)/python setup.py --quiet build_ext --build-lib build/$* --build-temp build/$*-temp
	$(SANITIZED) LD_PRELOAD="$(PRELOAD)" DARTSFAST_LIBRARY=$(CURDIR)/build/$*/dartsfast/_C.abi3.so \
		$(BIN)/python -m pytest -q tests/test_ops.py tests/test_ops_fuzz.py tests/test_gemm.py \
			tests/test_cross_entropy.py tests/test_fd_hvp.py tests/test_locked_linear.py tests/test_norm_stats.py \
			tests/test_programs.py

bench: install
	$(BIN)/python -m bench ops --threads 1 --out bench/results
	$(BIN)/python -m bench cnn_step memory rnn_step train_step hvp model --out bench/results
	$(BIN)/python -m bench report bench/results --readme README.md
	$(BIN)/python -m bench report bench/results --readme docs/performance.md
