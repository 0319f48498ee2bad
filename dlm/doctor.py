"""Says what this machine, a model and data can do, before hours are spent: `python -m dlm.doctor [option=value ...]`.

It takes the options of dlm.train: builds that run's model, data and losses, estimates a step's memory, times a few
steps and trains nothing. Exit code 1 if the run could not be trained.

With --plan it only estimates the memory of a step, from the model's config (and, where it reads images, from the first
rows of the data): without its weights, and for GPUs that this machine does not have, of which runtime.memory_gb says
the size."""

from __future__ import annotations

import contextlib
import importlib.util
import io
import math
import os
import shutil
import statistics
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import psutil
import torch
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console
from rich.text import Text
from transformers import AutoConfig, PreTrainedModel

from dlm.config.build import Experiment, build, first_rows, make, make_masking, num_processes
from dlm.config.command_line import hydra_command
from dlm.config.kinds import require_kinds, require_options
from dlm.config.settings import Keep, Train
from dlm.config.values import evaluation_of, train_settings
from dlm.conversion.pieces import loss_of
from dlm.data.external import summary_lines
from dlm.data.packing import collate
from dlm.logger.wandb import has_key
from dlm.model.denoiser import Denoiser
from dlm.model.device import device_name
from dlm.model.layers import layer_types
from dlm.model.parent import DTYPES, resolve
from dlm.model.positions import num_positions
from dlm.model.vision import auto_class, reads_images
from dlm.runs.run import environment
from dlm.trainer import memory
from dlm.trainer.fit import require_evaluation
from dlm.trainer.picture_memory import ROWS, planned_bytes
from dlm.trainer.resources import device_of, fit_into_memory, space_of, step_of
from dlm.trainer.step import Step
from dlm.trainer.strategy import SHARDED

MARKS = {"good": ("✓", "green"), "note": ("!", "yellow"), "problem": ("✗", "red")}
# Packages that are not needed to train: what each is for, and the extra that installs it.
OPTIONAL = {
    "lm_eval": ("standard benchmarks", "eval"),
    "wandb_workspaces": ("W&B dashboards", "dashboard"),
    "submitit": ("SLURM", "slurm"),
    "hydra_plugins.hydra_optuna_sweeper": ("a search by Optuna", "search"),
}
TIMED_STEPS, TIMED_SECONDS = 4, 30.0  # micro-batches; no more of them after so long


@dataclass(frozen=True)
class Finding:
    """What was found of a `subject`; `kind` is one of `MARKS`."""

    kind: str
    subject: str
    text: str


def findings(cfg: DictConfig) -> Iterator[Finding]:
    """What this machine is, and what the run of a config would meet on it, in the order of a training."""
    yield from of_machine(cfg)
    yield from of_services()
    try:
        require_options(cfg, "train", Keep, Train)
        require_kinds(cfg, Train)
        with contextlib.redirect_stdout(io.StringIO()):
            experiment = build(cfg)
            require_evaluation(evaluation_of(cfg.get("evaluation"), cfg.data), experiment)
    except (ValueError, OSError, ImportError) as error:
        yield Finding("problem", "run", " ".join(str(error).split()))
        return
    yield from of_model(cfg, experiment)
    yield from of_data(cfg, experiment)
    yield from of_steps(cfg, experiment)


def of_machine(cfg: DictConfig) -> Iterator[Finding]:
    device, machine = device_of(cfg.trainer.accelerator), environment("")
    versions = ", ".join(f"{name} {version}" for name, version in machine["versions"].items())
    yield Finding("good", "versions", versions)
    ram = psutil.virtual_memory()
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    yield Finding(
        "good", "machine", f"{cores} cores, {ram.available / memory.GB:.1f} of {ram.total / memory.GB:.1f} GB free"
    )
    for index in range(torch.cuda.device_count()):
        free, total = torch.cuda.mem_get_info(index)
        sizes = f"{free / memory.GB:.1f} of {total / memory.GB:.1f} GB free"
        text = f"cuda:{index} {torch.cuda.get_device_name(index)}, {sizes}"
        yield Finding("good", "GPU", text if torch.cuda.is_bf16_supported() else f"{text}, no bfloat16")
    if device.type == "cpu" and torch.cuda.is_available():
        yield Finding("note", "device", "trains on the CPU, although there is a GPU: trainer=gpu uses it")
    elif device.type == "cpu" and cfg.trainer.accelerator not in ("cpu", "auto"):
        what = f"trainer.accelerator={cfg.trainer.accelerator}, but torch {torch.__version__} sees no GPU"
        yield Finding("problem", "device", f"{what}: choose trainer=cpu, or install a torch for your driver")
    else:
        yield Finding("good", "device", f"trains on {device_name(device)}")
    processes = num_processes(cfg)
    if device.type == "cuda" and cfg.trainer.devices > torch.cuda.device_count():
        yield Finding(
            "problem", "device", f"trainer.devices={cfg.trainer.devices}, {torch.cuda.device_count()} are here"
        )
    elif processes > 1:
        yield Finding("good", "processes", f"{processes} train one run together")


def of_services() -> Iterator[Finding]:
    for package, (purpose, extra) in OPTIONAL.items():
        if not is_installed(package):
            yield Finding("note", "packages", f"{package} is not installed ({purpose}): pip install 'dlm[{extra}]'")
    if has_key():
        yield Finding("good", "W&B", f"logged in; mode {os.environ.get('WANDB_MODE') or 'online'}")
    else:
        yield Finding("note", "W&B", "no API key: runs are logged offline; wandb login, or make wandb-sync later")
    if os.environ.get("HF_HUB_OFFLINE"):
        yield Finding("note", "hub", "HF_HUB_OFFLINE is set: only what is in the cache or a folder can be loaded")
    if shutil.which("sbatch"):
        job = os.environ.get("SLURM_JOB_ID")
        yield Finding("good", "SLURM", f"inside job {job}" if job else "sbatch is here; this is outside a job")


def of_model(cfg: DictConfig, experiment: Experiment) -> Iterator[Finding]:
    parent = experiment.parent
    model, tokenizer = parent.model, parent.tokenizer
    total, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (True, False))
    dtypes = ", ".join(sorted({str(p.dtype).removeprefix("torch.") for p in model.parameters()}))
    kind = type(model).__name__
    yield Finding("good", "model", f"{kind} of {total:,} parameters ({trained:,} trained), {dtypes}: {parent.source}")
    mask = tokenizer.convert_ids_to_tokens(parent.mask_id)
    text = f"{len(tokenizer):,} tokens; mask {mask!r} ({parent.mask_id}), EOS {tokenizer.eos_token!r}"
    yield Finding("good", "tokenizer", f"{text}, {'a' if tokenizer.chat_template else 'no'} chat template")
    limit = num_positions(model.config)
    yield Finding(
        "good", "positions", f"rows of {cfg.data.length} tokens; the model has {limit or 'no limit of'} positions"
    )
    windows = {name: size for name, size in parent.layer_types.items() if size}
    if windows:
        yield Finding("good", "layers", f"with sliding windows of {', '.join(map(str, windows.values()))} tokens")


def of_data(cfg: DictConfig, experiment: Experiment) -> Iterator[Finding]:
    data = experiment.data
    rows = [data.train_rows[index] for index in range(min(len(data.train_rows), 16))]
    maskable = sum(int(row.maskable.sum()) for row in rows) / sum(row.x0.numel() for row in rows)
    yield Finding("good", "data", f"{maskable:.0%} of the tokens of the first {len(rows)} rows may be masked")
    for line in summary_lines(data.summary(experiment.num_steps * experiment.budget.rows)):
        yield Finding("good", "data", line.removeprefix("data "))
    spent = experiment.budget.spent(data, experiment.conversion, experiment.num_steps)
    amounts = ", ".join(f"{value:,.4g} {unit}" for unit, value in spent.items() if value is not None)
    yield Finding("good", "budget", f"{experiment.num_steps:,} optimizer steps: {amounts.replace('_', ' ')}")
    needed = space_of(experiment, step_of(train_settings(cfg), experiment))
    folder = next(path for path in Path(cfg.runs_dir).expanduser().absolute().parents if path.exists())
    free = shutil.disk_usage(folder).free
    kind = "good" if free > needed else "problem"
    yield Finding(
        kind, "disk", f"a run needs {needed / memory.GB:.2f} GB in {cfg.runs_dir!r}, {free / memory.GB:.1f} GB are free"
    )


def of_steps(cfg: DictConfig, experiment: Experiment) -> Iterator[Finding]:
    """The memory and the time of a step."""
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            fit_into_memory(train_settings(cfg), experiment, cfg.runtime.pieces)
            experiment.trainable.ready(experiment.parent.model)
        yield Finding("good", "memory", said.getvalue().strip())
        seconds = seconds_of_micro_batch(cfg, experiment)
    except (ValueError, torch.OutOfMemoryError) as error:
        yield Finding("problem", "memory", " ".join(str(error).split()))
        return
    tokens = cfg.data.batch_size * cfg.data.length
    total = seconds * experiment.num_steps * cfg.trainer.accumulate
    rate = tokens * num_processes(cfg) / seconds
    text = f"{rate:,.0f} tokens/s, about {duration(total)} for the run without optimizer, validation and evaluation"
    yield Finding("good", "speed", text)


def seconds_of_micro_batch(cfg: DictConfig, experiment: Experiment) -> float:
    """The median time of a forward and a backward of one micro-batch, after one to warm up."""
    if cfg.runtime.threads:
        torch.set_num_threads(cfg.runtime.threads)
    device, conversion, data = device_of(cfg.trainer.accelerator), experiment.conversion, experiment.data
    conversion.pieces = cfg.runtime.pieces
    conversion.to(device).train()
    autocast = torch.autocast(device.type, torch.bfloat16, enabled=str(cfg.trainer.precision).startswith("bf16"))
    times, began = [], time.perf_counter()
    for number in range(1 + TIMED_STEPS):
        first = number * data.batch_size
        indices = [index % len(data.train_rows) for index in range(first, first + data.batch_size)]
        batch = collate([data.train_rows[index] for index in indices])
        start = time.perf_counter()
        pieces = conversion.preparation(batch, number, experiment.num_steps, 0)
        with autocast:
            output, _ = loss_of(conversion.objective, conversion.denoiser, [piece.to(device) for piece in pieces])
        output.loss.backward()
        if device.type == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
        conversion.zero_grad()
        if number and time.perf_counter() - began > TIMED_SECONDS:
            break
    return statistics.median(times[1:])


def duration(seconds: float) -> str:
    """A time in words: `2 h 5 min`."""
    minutes = round(seconds / 60)
    if seconds < 60:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def is_installed(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of a parent package
        return False


def planned(cfg: DictConfig) -> Iterator[Finding]:
    """The memory of a step on each of the devices of a config, and whether it fits into `runtime.memory_gb`."""
    require_options(cfg, "train", Keep, Train)
    parent, trainable = empty_model(OmegaConf.to_container(cfg.model, resolve=True)), make(cfg.trainable)
    with torch.device("meta"):
        model = trainable.apply(parent, 0)
    total, trained = (sum(p.numel() for p in model.parameters() if p.requires_grad or every) for every in (True, False))
    how_many = "all trained" if trained == total else f"{trained:,} trained"
    dtype = str(model.dtype).removeprefix("torch.")
    yield Finding("good", "model", f"{type(parent).__name__} of {total:,} parameters, {how_many}, {dtype}")
    quantised = frozenset(map(id, trainable.quantised(model)))
    denoiser = Denoiser(model, make(cfg.attention), 0, cfg.token_shift, layer_types(model))
    device = torch.device("cpu" if cfg.trainer.accelerator == "cpu" else "cuda")
    views, is_sharded = make_masking(cfg).views, cfg.runtime.strategy == SHARDED
    step = Step(cfg.data.length, views, cfg.trainer.precision, device, num_processes(cfg), is_sharded, quantised)
    if reads_images(model.config) and "path" in cfg.model:  # without a path there is no processor
        step = replace(step, images=planned_bytes(model, first_rows(cfg, ROWS), step.activations(model)))
    limit = math.inf if cfg.runtime.memory_gb is None else cfg.runtime.memory_gb * memory.GB
    which = "sharded layers" if is_sharded else "whole weights"
    how = f"{cfg.trainer.precision} on each of {step.processes} devices, {which}"
    try:
        plan = memory.plan(denoiser, step, cfg.data.batch_size, limit, cfg.runtime.activation_checkpointing)
    except ValueError as error:
        yield Finding("problem", "memory", f"{how}: {' '.join(str(error).split())}")
        return
    again = ", layers computed again in the backward" if plan.checkpointing else ""
    yield Finding("good", "memory", f"{how}: a step needs at most about {plan.estimate}{again}")


def empty_model(node: dict[str, Any]) -> PreTrainedModel:
    """The model of a config without weights. Raises `ValueError` if it has no config.json of its own to build it
    from."""
    if not ("config" in node or "path" in node):
        raise ValueError(
            "--plan builds a model from its config.json: give model.path, or a model=random_… of its shape"
        )
    config = (
        AutoConfig.for_model(**node["config"])
        if "config" in node
        else AutoConfig.from_pretrained(resolve(node["path"]), trust_remote_code=node.get("trust_remote_code", False))
    )
    with torch.device("meta"):
        return auto_class(config).from_config(
            config, dtype=DTYPES[node["dtype"]], attn_implementation=node["attn_implementation"]
        )


@hydra_command("train", read=lambda argument: "+plan=true" if argument == "--plan" else argument)
def main(cfg: DictConfig) -> None:
    console, has_problem = Console(soft_wrap=True), False
    with open_dict(cfg):
        only_plan = cfg.pop("plan", False)
    for finding in planned(cfg) if only_plan else findings(cfg):
        mark, colour = MARKS[finding.kind]
        has_problem |= finding.kind == "problem"
        console.print(Text(f"{mark} ", colour).append(f"{finding.subject:10} ", "bold").append(finding.text))
    if has_problem:
        print("error: this run cannot be trained as it is (see ✗)", file=sys.stderr)
        raise SystemExit(1)


if __name__ == "__main__":
    main()
