# make train   from nothing to a pre-trained BERT: sample binaries, pairs, corpus, training
# make encoder search.py's encoder, from builds of other packages: experiment_data/build_packages.py
# make test    all tests
# make lint    ruff, the contracts for imports, types
# make audit   known vulnerabilities of the installed packages
# make locks   write requirements*.lock again, after a change of requirements*.txt
#
# TORCH=cpu    install torch's CPU-only build (default: PyPI's build, which on Linux brings CUDA)
# PYTHON=...   the Python to use (default: the first of 3.11, 3.12, 3.13 that is found)
# VENV=...     where the virtual environment goes (default: .venv)

VENV ?= .venv
PYTHON ?= $(shell for p in python3 python3.12 python3.13 python3.11; do \
	$$p -c 'import sys; sys.exit(not (3, 11) <= sys.version_info[:2] <= (3, 13))' 2>/dev/null \
	&& echo $$p && break; done)
UV = uv==0.13.9

# uv finds torch's builds by itself; pip's settings for mirrors are passed on to it.
ifdef TORCH
export UV_TORCH_BACKEND = $(TORCH)
endif
ifdef PIP_INDEX_URL
export UV_DEFAULT_INDEX ?= $(PIP_INDEX_URL)
endif
ifdef PIP_FIND_LINKS
export UV_FIND_LINKS ?= $(PIP_FIND_LINKS)
endif

# requirements.lock has versions and hashes of all packages, for Python 3.11 to 3.13, except torch.
# Those of PyPI's torch and its CUDA packages are in requirements-cuda.lock. Other builds of torch
# have other hashes, different on each server, so they are installed by version only.
LOCKS = -c requirements.lock
ifeq ($(TORCH)$(PIP_FIND_LINKS),)
LOCKS += -c requirements-cuda.lock --require-hashes
endif
cuda = ^(torch|triton|nvidia-.*|cuda-.*)==

run = $(VENV)/bin/python
# gendata.py holds out comm for validation and paste for the test, and leaves four for training.
programs = chroot comm join nice paste tee
comma := ,
space := $(subst ,, )

.PHONY: train encoder test lint audit locks

train: $(VENV)/installed
	$(run) experiment_data/build_coreutils.py --programs "$(programs)" --levels "O0 O2"
	$(run) gendata.py --biname $(subst $(space),$(comma),$(programs))
	$(run) dataprocess.py
	@PATH="$(abspath $(VENV))/bin:$$PATH" sh train.sh --check
	@echo
	@echo "Made:  output/ (analysed binaries)  data/ (pairs, corpus.txt)  vocab/vocab.txt  out/ (models)"
	@echo "Next, with the environment active (. $(VENV)/bin/activate):"
	@echo "  python gendata.py show 0 | less             what a pair of binaries looks like"
	@echo "  python pretrain.py predict --model_file $$(ls -t out/model_steps_*.pt | head -n 1) \\"
	@echo "      --line 'push reg8 mov reg8 [MASK] sub reg8 imme'"
	@echo "  tensorboard --logdir out/runs               how the losses fell"
	@echo "  python gendata.py --path DIR --biname NAME  your own builds, as DIR/<build>/NAME"

# gendata.py ends with 3 if it skipped a binary, and says which.
encoder: $(VENV)/installed
	$(run) gendata.py --path experiment_data/packages/binaries/ --biname '*' --pairs 8 \
		--data data/packages || test $$? -eq 3
	$(run) dataprocess.py functions --data data/packages
	$(run) classify.py functions

test: $(VENV)/installed-dev
	$(run) -m pytest

lint: $(VENV)/installed-dev
	$(VENV)/bin/ruff check
	$(VENV)/bin/ruff format --check
	$(VENV)/bin/lint-imports
	$(VENV)/bin/mypy

audit: $(VENV)/installed-dev
	@$(VENV)/bin/pip-audit --local --strict --progress-spinner off > $(VENV)/audit 2>&1; code=$$?; \
	cat $(VENV)/audit; [ $$code -eq 0 ] || grep -q "^Found .* vulnerabilit" $(VENV)/audit || \
		echo "audit: not everything was checked; the database cannot be reached"; \
	exit $$code

locks: $(VENV)/bin/uv
	env -u UV_FIND_LINKS -u PIP_FIND_LINKS -u UV_TORCH_BACKEND $(VENV)/bin/uv pip compile --quiet \
		--universal --python-version 3.11 --generate-hashes --no-header --no-annotate \
		requirements-dev.txt > $(VENV)/lock
	awk '/^[^ ]/ { hit = ($$0 ~ /$(cuda)/) } !hit' $(VENV)/lock > requirements.lock
	awk '/^[^ ]/ { hit = ($$0 ~ /$(cuda)/) } hit' $(VENV)/lock > requirements-cuda.lock

$(VENV)/bin/uv:
	@test -n "$(PYTHON)" || { echo "error: no Python 3.11, 3.12 or 3.13 found; install one," \
		"or name it: make PYTHON=/path/to/python3.12"; exit 1; }
	$(PYTHON) -m venv $(VENV) || { echo "error: $(PYTHON) cannot make a virtual environment;" \
		"on Debian and Ubuntu: apt install python3-venv"; exit 1; }
	$(run) -m pip install --quiet --disable-pip-version-check $(UV)
	@touch $@

$(VENV)/installed: requirements.txt requirements.lock $(VENV)/bin/uv
	$(VENV)/bin/uv pip install --quiet --python $(run) -r requirements.txt $(LOCKS)
	@touch $@

$(VENV)/installed-dev: requirements-dev.txt $(VENV)/installed
	$(VENV)/bin/uv pip install --quiet --python $(run) -r requirements-dev.txt $(LOCKS)
	@touch $@
