# `make` lists the targets. Each makes its environment (.venv) first, from constraints.txt.
PYTHON ?= python3
VENV ?= .venv
BIN := $(VENV)/bin
JOBS ?= 2

.DEFAULT_GOAL := help
.PHONY: help install train test test-all lint format sweep study parent parents ablation-report smoke bench bench-gpu clean

help: ## this list
	@awk 'BEGIN {FS = ":.*## "} /^[a-z-]+:.*## / {printf "  make %-16s %s\n", $$1, $$2}' $(MAKEFILE_LIST)

$(BIN)/.installed: pyproject.toml constraints.txt
	$(PYTHON) -m venv $(VENV)
	$(BIN)/python -m pip install --quiet --upgrade pip
	$(BIN)/python -m pip install --quiet --constraint constraints.txt --editable '.[test]'
	@touch $@

install: $(BIN)/.installed ## make the environment

train: $(BIN)/.installed ## convert the embedded parent and evaluate it: the main job (ARGS='option=value ...')
	$(BIN)/python -m dlm.train $(ARGS)

test: $(BIN)/.installed ## the tests, without the slow ones
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not slow and not gpu"

test-all: $(BIN)/.installed ## every test that this machine can run
	HF_HUB_OFFLINE=1 OMP_NUM_THREADS=1 $(BIN)/python -m pytest -n $(JOBS) -m "not gpu"

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
	$(BIN)/python -m dlm.train recipe=parent logger=csv
	$(BIN)/python -m dlm.embedded to=dlm/assets/tiny

# QUICK=1: one seed and fewer points, to reports/quick. FROM=committed: the committed results as they are.
STUDY := $(if $(QUICK),scale=quick) $(ARGS)
REPORT := $(if $(QUICK),reports/quick,reports/ablation)
ablation-report: $(BIN)/.installed ## do what is missing of the study and render reports/ablation (QUICK=1, FROM=committed)
ifeq ($(FROM),committed)
	$(BIN)/python -m analysis.report --committed
else
	$(BIN)/python -m analysis.study sweeps/*.yaml --jobs $(JOBS) $(STUDY); status=$$?; \
	$(BIN)/python -m analysis.report --runs runs --out $(REPORT) $(STUDY) && exit $$status
endif

PEER ?=
smoke: $(BIN)/.installed ## every sweep, every artefact and the report at scale=smoke, in build/smoke
	$(BIN)/python -m analysis.study sweeps/*.yaml scale=smoke --runs build/smoke/runs --jobs $(JOBS)
	$(BIN)/python -m analysis.report scale=smoke --runs build/smoke/runs --out build/smoke/report

bench: $(BIN)/.installed ## how fast training and decoding are on this CPU, beside the naive way (PEER=a clone of dllm)
	$(BIN)/python -m dlm.benchmark bench=train peer.dllm=$(or $(PEER),null) $(ARGS)
	$(BIN)/python -m dlm.benchmark bench=decode peer.dllm=$(or $(PEER),null) $(ARGS)

# With the packages of the machine's own image (BENCH_PYTHON), which has the right build of torch.
BENCH_PYTHON ?= python3
GPU := model=random_1_5b device=cuda dtype=bfloat16
bench-gpu: ## the GPU tests, then training and decoding at the shape of Qwen2.5-1.5B on one GPU
	$(BENCH_PYTHON) -m pytest -m gpu
	$(BENCH_PYTHON) -m dlm.benchmark bench=train $(GPU) bench.length=4096 bench.batch_size=1 $(ARGS)
	$(BENCH_PYTHON) -m dlm.benchmark bench=decode $(GPU) bench.prompt_length=512 bench.new_tokens=128 $(ARGS)

clean: ## remove the environment and caches (runs stay)
	rm -rf $(VENV) .pytest_cache .ruff_cache build *.egg-info
