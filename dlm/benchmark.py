"""Measure training and decoding speed: `python -m dlm.benchmark [bench=train|decode|sweep] [option=value ...]`.

A correctness gate runs before anything is timed. The contestants take turns, every ratio has a range, and the JSON
record holds every repetition.
"""

from __future__ import annotations

import json
import time
from contextlib import AbstractContextManager, nullcontext
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from dlm.bench.base import Bench, Workbench, cast, require_at_least
from dlm.bench.peer import Dllm
from dlm.config.build import choices, make
from dlm.config.command_line import hydra_command
from dlm.config.kinds import require_options
from dlm.config.settings import Benchmark
from dlm.evaluation.timing import clock_of
from dlm.model.device import device_name, usable_device
from dlm.model.parent import DTYPES
from dlm.runs.run import environment
from dlm.runs.storage import write_atomically

WIDTH = 100  # columns, if standard output is not a terminal


def benchmark(cfg: DictConfig, console: Console) -> Path:
    """Run a benchmark, print its tables, and return the path of the record."""
    bench, device, path = validated(cfg)
    began = time.time()
    with make_peer(cfg) as peer:  # before the model is loaded, because the peer may fail to start
        with torch.random.fork_rng(devices=[]):
            workbench = make_workbench(cfg, device, peer)
        result = bench.run(workbench)
    model = workbench.model
    record = {
        "date": time.strftime("%Y-%m-%dT%H:%M:%S%z", time.localtime(began)),
        "bench": type(bench).__name__.lower(),
        "choices": choices(),
        "settings": OmegaConf.to_container(cfg, resolve=True),
        **environment(device_name(device)),
        "device": {"name": device_name(device), "threads": torch.get_num_threads()},
        "model": {
            "source": workbench.parent.source,
            "parameters": sum(p.numel() for p in model.parameters()),
            "dtype": str(workbench.dtype).removeprefix("torch."),
            "attention": {"ours": workbench.attention, "others": workbench.plain_attention},
        },
        "peer": peer and peer.description,
        "result": result,
        "wall_seconds": time.time() - began,
    }
    show(record, bench, console)  # before writing, which fails on a full disk
    write_atomically(path, json.dumps(record, indent=1))
    return path


def validated(cfg: DictConfig) -> tuple[Bench, torch.device, Path]:
    """The benchmark, its device, and the path of its record. Raises `ValueError` for bad values, before the model is
    loaded."""
    require_options(cfg, "benchmark", Benchmark)
    bench = make(cfg.bench)
    make(cfg.masking)
    require_at_least(1, repeats=cfg.repeats)
    require_at_least(0, warmup=cfg.warmup)
    for name in ("threads", "peak_tflops", "peak_bandwidth_gbs"):
        if cfg[name] is not None and cfg[name] <= 0:
            raise ValueError(f"{name} {cfg[name]} must be more than 0, or null")
    for name in ("dtype", "gate_dtype"):
        if cfg[name] is not None and cfg[name] not in DTYPES:
            raise ValueError(f"{name} {cfg[name]!r} is unknown: choose one of {', '.join(DTYPES)}, or null")
    device = usable_device(cfg.device)
    clock_of(device, cfg.clock)
    make_peer(cfg)
    # Milliseconds, because the jobs of a sweep may start together.
    name = f"{type(bench).__name__.lower()}-{datetime.now().strftime('%Y-%m-%d_%H-%M-%S.%f')[:-3]}.json"
    path = Path(cfg.out or Path(cfg.runs_dir) / "benchmarks" / name).expanduser()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"out {str(path)!r} cannot be written ({error.strerror}): name another file") from error
    if path.is_dir():
        raise ValueError(f"out {str(path)!r} is a folder: name a file in it, as {str(path / name)!r}")
    return bench, device, path


def make_peer(cfg: DictConfig) -> AbstractContextManager[Dllm | None]:
    """The peer to measure as well, if any, which starts on entering the context. Raises `ValueError` if it is not
    installed or cannot do the same work."""
    if cfg.peer.dllm is None:
        return nullcontext()
    if cfg.token_shift:
        raise ValueError(
            "token_shift true cannot be measured beside peer.dllm, which scores the first token of a block from the "
            "noisy stream: set token_shift=false"
        )
    return Dllm(cfg.peer.dllm, cfg.clock)


def make_workbench(cfg: DictConfig, device: torch.device, peer: Dllm | None = None) -> Workbench:
    """The model on its device and in its precision, with the settings of the benchmark. Also sets the number of threads
    of this process."""
    if cfg.threads:
        torch.set_num_threads(cfg.threads)
    parent = make(cfg.model)
    dtype = DTYPES[cfg.dtype] if cfg.dtype else next(parent.model.parameters()).dtype
    default_gate_dtype = torch.float64 if dtype == torch.float64 else torch.float32
    gate_dtype = DTYPES[cfg.gate_dtype] if cfg.gate_dtype else default_gate_dtype
    cast(parent.model, device, dtype)
    return Workbench(
        parent=parent,
        masking=make(cfg.masking),
        token_shift=cfg.token_shift,
        device=device,
        dtype=dtype,
        gate_dtype=gate_dtype,
        repeats=cfg.repeats,
        warmup=cfg.warmup,
        seed=cfg.seed,
        clock=clock_of(device, cfg.clock),
        compile=cfg.compile,
        peak_tflops=cfg.peak_tflops,
        peak_bandwidth_gbs=cfg.peak_bandwidth_gbs,
        rebuild=partial(make_workbench, cfg, device),
        peer=peer,
    )


def show(record: dict[str, Any], bench: Bench, console: Console) -> None:
    """Print the model and the machine, then the tables."""
    model, device = record["model"], record["device"]
    machine = f"{device['name']}, {device['threads']} threads" if device["name"] == "cpu" else device["name"]
    console.print(
        f"{model['source']}, {model['parameters'] / 1e6:,.1f}M parameters, {model['dtype']}, on {machine}; "
        f"torch {record['versions']['torch']}, transformers {record['versions']['transformers']}; "
        f"{record['settings']['clock']} time",
        highlight=False,
    )
    for table in bench.tables(record["result"]):
        console.print(table)


@hydra_command("benchmark")
def main(cfg: DictConfig) -> dict[str, Any]:
    console = Console()
    path = benchmark(cfg, console if console.is_terminal else Console(width=WIDTH))
    print(f"record: {path}")
    return {"id": path.stem, "status": "finished", "record": {}}


if __name__ == "__main__":
    main()
