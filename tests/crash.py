"""Real processes that are really killed. They are forked from a server that has imported everything, so each costs what
it computes and no more."""

from __future__ import annotations

import importlib
import json
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path

from common import LIGHT_EVALUATION, ROOT, config

import dlm
from dlm.data import prose
from dlm.runs.lease import Busy
from dlm.train import train

# Six optimizer steps of two micro-batches with dropout, a validation every two, a checkpoint every step, and a light
# evaluation: everything that a run does.
OVERRIDES = (
    "tokens=3072",
    "block_size=8",
    "data.length=64",
    "data.batch_size=4",
    "data.val_rows=8",
    "trainable=lora",
    "trainable.dropout=0.1",
    "masking=uniform",
    "masking.count=bernoulli",
    "trainer.accumulate=2",
    "runtime.progress_bar=false",
    "runtime.log_every=1",
    "runtime.val_every=2",
    "runtime.drift_every=3",
    "runtime.checkpoint_every=1",
    *LIGHT_EVALUATION,
    "logger=csv",
)


@dataclass(frozen=True)
class AtCall:
    """The `number` of the call of a method in which the signal comes, and which method: `module:Class.name`. With
    `to_all`, the processes that this one has started get it as well, as those of a terminal do."""

    where: str
    number: int
    sent: int = signal.SIGKILL
    to_all: bool = False

    def arm(self, runs_dir: Path) -> None:
        if self.to_all:
            os.setpgrp()
        module, _, path = self.where.partition(":")
        *owners, name = path.split(".")
        owner = importlib.import_module(module)
        for part in owners:
            owner = getattr(owner, part)
        method = getattr(owner, name)
        calls = 0

        def counted(*args, **kwargs):
            nonlocal calls
            calls += 1
            if calls == self.number:
                whom = -os.getpgrp() if self.to_all else os.getpid()
                subprocess.run(["kill", f"-{self.sent}", "--", str(whom)])  # a sender who is nobody's parent
            return method(*args, **kwargs)

        setattr(owner, name, counted)


@dataclass(frozen=True)
class AtWrite:
    """SIGKILL at the `number`-th time that a file whose path holds `name` is opened to be written, or renamed."""

    name: str
    number: int

    def arm(self, runs_dir: Path) -> None:
        seen = 0

        def hook(event: str, args: tuple) -> None:
            nonlocal seen
            if (event == "open" and args[2] & (os.O_WRONLY | os.O_RDWR)) or event == "os.rename":
                path = str(args[0])
                if path.startswith(str(runs_dir)) and self.name in path:
                    seen += 1
                    if seen == self.number:
                        os.kill(os.getpid(), signal.SIGKILL)

        sys.addaudithook(hook)


@dataclass(frozen=True)
class InWrite:
    """SIGKILL when half of what `torch.save` writes for the `number`-th time is on disk."""

    number: int

    def arm(self, runs_dir: Path) -> None:
        import io

        import torch

        save, calls = torch.save, 0

        def half(value, file, *args, **kwargs):
            nonlocal calls
            calls += 1
            if calls < self.number:
                return save(value, file, *args, **kwargs)
            buffer = io.BytesIO()
            save(value, buffer)
            file.write(buffer.getvalue()[: buffer.tell() // 2])
            file.flush()
            os.kill(os.getpid(), signal.SIGKILL)

        torch.save = half


def child(runs_dir: Path, overrides: tuple[str, ...], fault: AtCall | AtWrite | InWrite | None) -> None:
    """What a process does: train the run, with a fault in it."""
    with (runs_dir.parent / "log").open("a") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    if Path(dlm.__file__).parent.parent != ROOT:
        raise RuntimeError(f"the process forked with the code in {dlm.__file__}, not in {ROOT}")
    chapters = {split: prose.chapters(split)[:5] for split in ("train", "val", "test")}
    prose.chapters = chapters.__getitem__
    if fault is not None:
        fault.arm(runs_dir)
    try:
        train(config(*OVERRIDES, f"runs_dir={runs_dir}", *overrides))
    except KeyboardInterrupt:
        os._exit(130)


def sweep(runs_dir: Path, overrides: tuple[str, ...], fault: None) -> None:
    """What a process of a sweep does: the points in order, but those that another one works on."""
    for seed in range(5):
        try:
            with (runs_dir.parent / "log").open("a") as log, redirect_stdout(log), redirect_stderr(log):
                status = train(config(*OVERRIDES, f"runs_dir={runs_dir}", f"seed={seed}", *overrides))["status"]
        except Busy:
            status = "busy"
        with (runs_dir.parent / "done").open("a") as done:
            done.write(f"{seed} {status}\n")


class Processes:
    """Starts them."""

    def __init__(self) -> None:
        paths = [str(ROOT), str(ROOT / "tests"), os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, paths))
        os.environ.update(OMP_NUM_THREADS="1", HF_HUB_OFFLINE="1")
        self.context = multiprocessing.get_context("forkserver")
        self.context.set_forkserver_preload(["crash", "dlm.train"])

    def start(self, runs_dir: Path, *overrides: str, fault=None, target: Callable = child):
        runs_dir.mkdir(parents=True, exist_ok=True)
        process = self.context.Process(target=target, args=(runs_dir, overrides, fault))
        process.start()
        return process

    def run(self, runs_dir: Path, *overrides: str, fault=None) -> int:
        """The exit code; a signal's number is negative."""
        process = self.start(runs_dir, *overrides, fault=fault)
        process.join(300)
        return process.exitcode

    def killed_after(self, seconds: float, runs_dir: Path, *overrides: str) -> int:
        """As `run`, but killed by the clock."""
        process = self.start(runs_dir, *overrides)
        process.join(seconds)
        process.kill()
        process.join()
        return process.exitcode


def outcome(runs_dir: Path) -> dict[str, object]:
    """Everything that a finished run found, except what a clock or a machine says."""
    (folder,) = (path.parent for path in runs_dir.glob("*/run.json"))
    record = json.loads((folder / "run.json").read_text())
    evaluation = {name: value for name, value in record["evaluation"].items() if name != "throughput"}
    files = ("model/model.safetensors", "metrics.csv", "drift.csv", "items.csv", "trace.json")
    left = sorted(
        str(path.relative_to(runs_dir)) for path in runs_dir.rglob("*") if path.name.endswith(".tmp") and path.is_file()
    )
    return {
        "files": {name: (folder / name).read_bytes() for name in files},
        "record": {name: record[name] for name in ("status", "train", "drift", "tokens", "steps", "parent", "error")},
        "evaluation": evaluation,
        "checkpoint": (folder / "checkpoint").exists(),
        "left over": left,
    }


def elapsed(function: Callable[[], object]) -> float:
    began = time.monotonic()
    function()
    return time.monotonic() - began
