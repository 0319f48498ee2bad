"""Convert an autoregressive model into a diffusion model: `python -m dlm.train [option=value ...]`.

With `-m option=a,b other=1,2,3` it is a sweep over all combinations."""

from __future__ import annotations

import contextlib
import gc
import io
import shutil
import sys
import time
import traceback
from typing import Any

import torch
from omegaconf import DictConfig

from dlm.config import multirun
from dlm.config.build import choices, num_processes, requested_decoding
from dlm.config.command_line import hydra_command
from dlm.config.inputs import inputs_of, require_same
from dlm.config.kinds import require_kinds, require_options
from dlm.config.loggers import logged, loggers, logging_again, logging_to
from dlm.config.settings import Keep, Train
from dlm.config.training import Training
from dlm.config.values import evaluation_of
from dlm.console import is_sweep
from dlm.evaluation.results import send_results
from dlm.evaluation.suite import evaluate_again, evaluate_run, is_evaluated
from dlm.evaluation.summary import show
from dlm.logger.base import RunLogger
from dlm.model.device import device_name
from dlm.runs.lease import BUSY, Busy, lease
from dlm.runs.run import Run, environment
from dlm.runs.storage import disk_is_full
from dlm.trainer.fit import fit
from dlm.trainer.interruption import sigterm_as_ctrl_c
from dlm.trainer.processes import Follower, is_follower
from dlm.trainer.resources import device_of


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train and evaluate the run of a config, unless it is finished. Returns `id`, `status` and the `record`. Raises
    `Busy` if another process works on the run, and `ValueError` for a bad config or a run that failed before."""
    require_options(cfg, "train", Keep, Train)
    with sigterm_as_ctrl_c():  # not as a decorator, which parallel launchers cannot pickle
        return follow(cfg) if is_follower(num_processes(cfg)) else lead(cfg)


def follow(cfg: DictConfig) -> dict[str, Any]:
    """`train` in a process that follows: it trains and writes nothing. A `ValueError`, which all processes raise, is
    suppressed here and reported by the leader: Lightning would kill the leader if this process failed first."""
    run = Follower(Run.create(cfg, choices()).folder)
    pieces, problem = max(cfg.runtime.pieces, run.record.get("pieces", 1)), None
    if cfg.force or not run.model_folder.exists():
        with contextlib.redirect_stdout(io.StringIO()), contextlib.suppress(KeyboardInterrupt, ValueError):
            try:
                fit(Training.of(cfg), run, pieces, loggers(cfg.get("logger"), run))
            except torch.OutOfMemoryError as error:
                problem = str(error).partition("\n")[0]
    if problem:
        more_pieces(cfg, pieces, problem)
    return {"id": run.id, "status": "followed", "record": run.record}


def lead(cfg: DictConfig) -> dict[str, Any]:
    """`train` in the process that leads."""
    run = Run.create(cfg, choices())
    is_finished = run.status == "finished" and not cfg.force
    if not cfg.force and (is_finished or run.checkpoint.exists() or run.model_folder.exists()):
        require_same(run, cfg)
    if is_finished and is_evaluated(run, evaluation_of(cfg.evaluation, cfg.data), requested_decoding(cfg)):
        print(f"run {run.id} is finished already: {run.folder} (force=true trains it again)")
        return {"id": run.id, "status": "skipped", "record": run.record}
    with sigterm_as_ctrl_c(), lease(run.folder) as claim:
        if run.status == "finished" and not cfg.force:  # another process may have finished it meanwhile
            evaluation, decoding = evaluation_of(cfg.evaluation, cfg.data), requested_decoding(cfg)
            if not is_evaluated(run, evaluation, decoding):
                evaluate_again(run, evaluation, decoding, str(device_of(cfg.trainer.accelerator)))
                with logging_again(run) as again:
                    send_results(again, run)
            return {"id": run.id, "status": "skipped", "record": run.record}
        if run.status == "failed" and not cfg.retry:
            reason = run.record["error"].strip().splitlines()[-1]
            raise ValueError(f"run {run.id} has failed before ({reason}): retry=true tries it again")
        try:
            finish(cfg, run)
        except BaseException as error:
            # Otherwise another process has taken over the run, or it is finished and only a logger failed.
            if claim.compromise is None and run.status != "finished":
                record_failure(run, error)
            raise
    return {"id": run.id, "status": "finished", "record": run.record}


def finish(cfg: DictConfig, run: Run) -> None:
    """Train and evaluate a run from its last checkpoint, or again from the start with `force`."""
    for path in run.temporary_files():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if cfg.force:
        for folder in (run.folder / "measurements", run.checkpoint.parent, run.model_folder):
            shutil.rmtree(folder, ignore_errors=True)
        run.update(pieces=1)
    device = device_of(cfg.trainer.accelerator)
    machine = environment(device_name(device))
    run.update(status="running", error=None, started=time.time(), inputs=inputs_of(cfg), **logged(cfg, run), **machine)
    with logging_to(cfg.get("logger"), run) as opened:
        if not run.model_folder.exists():  # training writes it last
            fit_in_pieces(cfg, run, opened)
        evaluation = evaluation_of(cfg.evaluation, cfg.data)
        run.update(evaluation=evaluate_run(run, evaluation, requested_decoding(cfg), str(device)))
        run.seal()
        shutil.rmtree(run.checkpoint.parent, ignore_errors=True)  # before the record says finished: a kill leaves none
        run.update(status="finished", ended=time.time())
        send_results(opened, run)


def record_failure(run: Run, error: BaseException) -> None:
    """Record why a run was interrupted or failed; its checkpoints stay. Raises `ValueError` if the disk is full."""
    is_disk_full = disk_is_full(error)
    interrupted = is_disk_full or isinstance(error, KeyboardInterrupt)
    with contextlib.suppress(OSError):  # on a full disk the status stays "running"
        run.update(status="interrupted" if interrupted else "failed", error=traceback.format_exc())
    if is_disk_full:
        raise ValueError(
            f"the disk of {str(run.folder)!r} is full ({error}): free space and give the same command again, it goes "
            "on where it was"
        ) from error


def fit_in_pieces(cfg: DictConfig, run: Run, opened: list[RunLogger]) -> None:
    """Train a run. If the device runs out of memory, resume from the last checkpoint with twice as many pieces per
    micro-batch. A resumed run keeps its number of pieces. Raises `ValueError` if even single rows do not fit."""
    require_kinds(cfg, Train)
    rows, pieces = cfg.data.batch_size, max(cfg.runtime.pieces, run.record.get("pieces", 1))
    while True:
        run.update(pieces=pieces)
        try:
            return fit(Training.of(cfg), run, pieces, opened)
        except torch.OutOfMemoryError as error:
            problem = str(error).partition("\n")[0]
        pieces = more_pieces(cfg, pieces, problem)
        print(f"out of memory ({problem}): a micro-batch of {rows} rows is computed in {pieces} pieces from here on")
        gc.collect()  # frees the failed attempt
        torch.cuda.empty_cache()


def more_pieces(cfg: DictConfig, pieces: int, problem: str) -> int:
    """Number of pieces for the next attempt. Raises `ValueError` if splitting further cannot help."""
    more = min(2 * pieces, cfg.data.batch_size)
    if pieces >= cfg.data.batch_size:
        raise ValueError(
            f"a step runs out of memory even row by row ({problem}): choose a shorter data.length, "
            "runtime.activation_checkpointing=true, trainable=lora or a smaller model"
        )
    if num_processes(cfg) > 1:  # the other processes wait for this one within the failed step
        raise ValueError(
            f"a step runs out of memory ({problem}): give the same command with runtime.pieces={more}, it "
            "goes on from the last checkpoint"
        )
    return more


@multirun.summarized
@hydra_command("train")
def main(cfg: DictConfig) -> dict[str, Any]:
    try:
        result = train(cfg)
    except Busy as busy:
        if is_sweep():  # the next job may be free
            print(busy)
            return {"id": None, "status": "busy"}
        print(f"busy: {busy}", file=sys.stderr)
        raise SystemExit(BUSY) from None
    if result["status"] != "followed":
        show(Run.load(result["id"], cfg.runs_dir))
    return result


if __name__ == "__main__":
    main()
