# `make` lists the targets. Each makes its environment (.venv) first, from constraints.txt.
PYTHON ?= python3
VENV ?= .venv
CONSTRAINTS ?= constraints.txt
BIN := $(VENV)/bin
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install train test-fast test test-compiled test-processes test-all test-lowest lint format sweep study parent long-parent vlm-parent train-vlm vlm-study parents ablation-report design-space docs generated smoke
.PHONY: dashboard wandb-sync leaderboard
.PHONY: bench bench-gpu bench-gpu-8b bench-gpu-decode clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/.installed: pyproject.toml $(CONSTRAINTS)
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[test]'
	@touch $@

install: $(BIN)/.installed ## make the environment

train: $(BIN)/.installed ## convert the embedded parent and evaluate it: the main job (ARGS='option=value ...')
	$(BIN)/python -m dlm.train $(ARGS)

PYTEST = HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) --dist worksteal
test-fast: $(BIN)/.installed ## a case of every test that trains nothing and is quick: a minute
	$(PYTEST) -m "not trains and not more and not grid and not slow"

test: $(BIN)/.installed ## the tests, without the slow ones, those that compile or start processes, and the large grids
	$(PYTEST) -m "not grid and not slow and not compiles and not processes"

test-compiled: $(BIN)/.installed ## the tests that compile, of what only a GPU runs otherwise: a minute
	$(PYTEST) -m "compiles and not slow"

test-processes: $(BIN)/.installed ## the tests of killed runs and of several processes: half a minute
	$(PYTEST) -m "processes and not slow and not grid"

test-all: $(BIN)/.installed ## every test that this machine can run
	$(PYTEST)

test-lowest: ## make test-fast with the lowest versions that pyproject.toml admits, in an environment of its own
	$(MAKE) test-fast VENV=build/lowest-env CONSTRAINTS=constraints-lowest.txt

lint: $(BIN)/.installed ## check style and formatting
	$(BIN)/ruff check .
	$(BIN)/ruff format --check .

format: $(BIN)/.installed ## mend style and formatting
	$(BIN)/ruff check --fix .
	$(BIN)/ruff format .

sweep: $(BIN)/.installed ## one of sweeps/ (NAME=table1_attention), or attention x block size (ARGS='option=value ...')
ifdef NAME
	$(BIN)/python -m analysis.study sweeps/$(NAME).yaml --jobs $(JOBS) $(ARGS)
else
	$(BIN)/python -m dlm.train -m attention=bidir,block block_size=4,16,64,128 $(ARGS)
endif

study: $(BIN)/.installed ## train and measure what is missing of every sweep (ARGS=scale=quick, or smoke)
	$(BIN)/python -m analysis.study sweeps/*.yaml --jobs $(JOBS) $(ARGS)

parents: $(BIN)/.installed ## train the AR models of other sizes that the study compares
	$(BIN)/python -m analysis.study sweeps/parents.yaml --jobs $(JOBS) $(ARGS)

parent: $(BIN)/.installed ## pretrain the embedded parent (about 35 minutes on one core) and install it with its card
	$(BIN)/python -m dlm.data.tokenizer to=dlm/assets/tiny
	$(BIN)/python -m dlm.train pretrain=embedded logger=csv
	$(BIN)/python -m dlm.exported.embedded to=dlm/assets/tiny

long-parent: $(BIN)/.installed ## pretrain that parent further on tasks with long answers, and install it in dlm/assets/long
	$(BIN)/python -m dlm.train pretrain=long logger=csv
	$(BIN)/python -m dlm.exported.embedded pretraining=long to=dlm/assets/long

vlm-parent: $(BIN)/.installed ## give the parent of long answers a vision tower, pretrain it on rendered scenes, and install it (half an hour of one core)
	test -d build/vlm || $(BIN)/python -m dlm.compose to=build/vlm image_mean=0.08 image_std=0.3
	$(BIN)/python -m dlm.train pretrain=scenes model.path=build/vlm logger=csv
	$(BIN)/python -m dlm.exported.embedded pretraining=scenes to=dlm/assets/vlm

SEEN = model=tiny_vlm block_size=8 data=scenes evaluation=scenes recipe=small_budget optimizer=muon lr=1e-3 optimizer.vision_lr=2e-4
train-vlm: $(BIN)/.installed ## convert the embedded vision-language parent and evaluate it (ARGS='option=value ...')
	$(BIN)/python -m dlm.train $(SEEN) tokens=600_000 $(ARGS)

vlm-study: $(BIN)/.installed ## train and measure what is missing of sweeps/vlm, and write reports/vlm (ARGS='option=value ...')
	$(BIN)/python -m analysis.study sweeps/vlm/*.yaml --jobs $(JOBS) $(ARGS)
	$(BIN)/python -m analysis.vision $(ARGS)

# QUICK=1: one seed and fewer points, to reports/quick. FROM=committed: the committed results as they are. ADD=1: do only
# what they lack, and add it to them. SWEEPS='sweeps/table*.yaml': do only what these lack; the report names the rest.
SWEEPS ?= sweeps/*.yaml
STUDY := $(if $(QUICK),scale=quick) $(ARGS)
REPORT := $(if $(QUICK),reports/quick,reports/ablation)
ablation-report: $(BIN)/.installed ## do what is missing of the study, render reports/ablation (QUICK=1, FROM=committed, ADD=1)
ifeq ($(FROM),committed)
	$(BIN)/python -m analysis.report --committed
else
	$(BIN)/python -m analysis.study $(SWEEPS) --jobs $(JOBS) $(if $(ADD),--with $(REPORT)/results.json) $(STUDY); \
	status=$$?; [ $$status -ne 2 ] || exit 2; \
	$(BIN)/python -m analysis.report --runs runs --out $(REPORT) $(if $(ADD),--add) $(STUDY) && exit $$status
endif

# RUN=1: train what is missing first. BOARD: where results.json and the pages are.
BOARD ?= reports/leaderboard
leaderboard: $(BIN)/.installed ## rank the recipes at equal training FLOPs, in reports/leaderboard (RUN=1 trains what is missing)
ifdef RUN
	$(BIN)/python -m analysis.study sweeps/leaderboard/*.yaml --jobs $(JOBS) $(addprefix --with ,$(wildcard $(BOARD)/results.json)) $(ARGS)
endif
	$(BIN)/python -m analysis.leaderboard --out $(BOARD) $(ARGS)

design-space: $(BIN)/.installed ## write docs/design_space.md: every option, its papers and what is known of it
	$(BIN)/python -m analysis.design_space

dashboard: $(BIN)/.dashboard-installed ## the W&B workspace and report of the runs, saved where there is a key (ARGS='project=NAME ...')
	$(BIN)/python -m dlm.dashboard $(ARGS)

$(BIN)/.dashboard-installed: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --constraint $(CONSTRAINTS) --editable '.[dashboard]'
	@touch $@

RUNS ?= runs
wandb-sync: $(BIN)/.installed ## upload what the runs of a folder logged offline to W&B (RUNS=runs, ARGS=--dry-run)
	$(BIN)/wandb sync --skip-synced $(ARGS) $(RUNS)/*/wandb/offline-run-*

docs: $(BIN)/.docs-installed ## the documentation as a site, in build/site
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

$(BIN)/.docs-installed: $(BIN)/.installed
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[docs]'
	@touch $@

generated: $(BIN)/.installed ## write the pages and pictures of docs/ that are made from the code and the YAMLs
	$(BIN)/python -m analysis.design_space
	$(BIN)/python -m analysis.site

PEER ?=
smoke: $(BIN)/.installed ## every sweep, every artefact and the report at scale=smoke, in build/smoke, and the committed report
	$(BIN)/python -m analysis.study sweeps/*.yaml scale=smoke --runs build/smoke/runs --jobs $(JOBS)
	$(BIN)/python -m analysis.report scale=smoke --runs build/smoke/runs --out build/smoke/report
	$(PYTEST) -k the_committed_report tests/test_report.py

bench: $(BIN)/.installed ## how fast training and decoding are on this CPU, beside the naive way (PEER=a clone of dllm)
	$(BIN)/python -m dlm.benchmark bench=train peer.dllm=$(or $(PEER),null) $(ARGS)
	$(BIN)/python -m dlm.benchmark bench=decode peer.dllm=$(or $(PEER),null) $(ARGS)

# With the packages of the machine's own image (BENCH_PYTHON), which has the right build of torch. bench-gpu and
# bench-gpu-8b take some ten minutes each, bench-gpu-decode perhaps twice that. None needs a network: the weights are
# random, of the real shapes. PEAKS are those measured on one H200.
BENCH_PYTHON ?= python3
PEAKS ?= peak_tflops=790 peak_bandwidth_gbs=4300
GPU = $(BENCH_PYTHON) -m dlm.benchmark device=cuda dtype=bfloat16 compile=true $(PEAKS)
TRAIN = $(GPU) bench=train bench.length=4096 bench.batch_size=1 bench.block_size=32
DECODE = $(GPU) bench=decode bench.prompt_length=512 bench.new_tokens=128 bench.block_sizes=[32]
BENCH_NEEDS = torch transformers lightning peft hydra omegaconf antlr4 jaxtyping psutil rich pytest
bench-gpu: ## the GPU tests, and a training step at the shape of Qwen2.5-1.5B on one GPU
	@$(BENCH_PYTHON) -c "import sys; from importlib.util import find_spec; \
	missing = [name for name in sys.argv[1:] if not find_spec(name)]; \
	sys.exit('$(BENCH_PYTHON) lacks ' + ', '.join(missing) if missing else 0)" $(BENCH_NEEDS)
	$(BENCH_PYTHON) -m pytest tests/gpu -p no:cacheprovider -k cuda; tests=$$?; \
	$(TRAIN) model=random_1_5b $(ARGS) && exit $$tests

bench-gpu-8b: ## a training step at the shape of Qwen3-8B
	$(TRAIN) model=random_8b gate_dtype=bfloat16 repeats=3 $(ARGS)

bench-gpu-decode: ## decoding at the shapes of Qwen2.5-1.5B, Qwen3-4B and Qwen3-8B
	$(DECODE) model=random_1_5b bench.batch_sizes=[1,8,32] bench.tokens_per_step=[1,2,4] $(ARGS)
	$(DECODE) model=random_4b bench.batch_sizes=[1] $(ARGS)
	$(DECODE) model=random_8b bench.batch_sizes=[1] $(ARGS)

clean: ## remove the environment and caches (runs stay)
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
