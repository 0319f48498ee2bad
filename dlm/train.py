"""Convert a parent: `python -m dlm.train [option=value ...]`, or sweep with `-m option=a,b other=1,2,3`."""

from __future__ import annotations

import contextlib
import gc
import resource
import shutil
import sys
import time
import traceback
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
from omegaconf import DictConfig

from dlm import memory, sweep
from dlm.build import Experiment, build, choices
from dlm.checkpoints import AtomicCheckpointIO, Checkpoints, newest_whole
from dlm.console import command, is_sweep
from dlm.drift import DriftMonitor, measure, save_reference, summary
from dlm.evaluate import evaluate_again, evaluate_run, headline, is_evaluated, show
from dlm.finite import FiniteGuard
from dlm.interruption import Interruption, sigterm_as_ctrl_c
from dlm.kinds import require_kinds
from dlm.lease import BUSY, Busy, lease
from dlm.loggers import Progress, close_wandb, loggers
from dlm.metrics import MetricTable
from dlm.runs import Run, environment
from dlm.selfcheck import SelfCheck
from dlm.storage import digests, disk_is_full
from dlm.trainable import gate

# What a run writes, in sizes of the model: the reference of drift, two checkpoints with two moments of AdamW, the
# result.
SPACE_IN_WEIGHTS = 8
Watches = tuple[SelfCheck, Interruption, FiniteGuard, MetricTable, DriftMonitor]


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train and evaluate the run of a config, unless that is done already. Returns `id`, `status` and the record.
    Raises `Busy` where another process works on the run."""
    with sigterm_as_ctrl_c():  # not as a decorator, which parallel launchers cannot pickle
        return done_or_trained(cfg)


def done_or_trained(cfg: DictConfig) -> dict[str, Any]:
    """`train`, without its care for signals."""
    run = Run.create(cfg, choices())
    done = run.status == "finished" and not cfg.force
    if done and is_evaluated(run, cfg.evaluation):
        print(f"run {run.id} is finished already: {run.folder} (force=true trains it again)")
        return {"id": run.id, "status": "skipped", "record": run.record}
    with sigterm_as_ctrl_c(), lease(run.folder) as claim:
        if run.status == "finished" and not cfg.force:  # perhaps since a moment ago
            if not is_evaluated(run, cfg.evaluation):
                evaluate_again(run, cfg.evaluation)
            return {"id": run.id, "status": "skipped", "record": run.record}
        if run.status == "failed" and not cfg.retry:
            reason = run.record["error"].strip().splitlines()[-1]
            raise ValueError(f"run {run.id} has failed before ({reason}): retry=true tries it again")
        try:
            work(cfg, run)
        except BaseException as error:
            if claim.compromise is None:  # else the run is another process's now
                leave(cfg, run, error)
            raise
    return {"id": run.id, "status": "finished", "record": run.record}


def work(cfg: DictConfig, run: Run) -> None:
    """Take a run from where it is to its end."""
    for path in run.leavings():
        shutil.rmtree(path) if path.is_dir() else path.unlink()
    if cfg.force:
        for folder in (run.folder / "measurements", run.checkpoint.parent, run.model_folder):
            shutil.rmtree(folder, ignore_errors=True)
        run.update(pieces=1)
    run.update(status="running", error=None, started=time.time(), **environment())
    if not run.model_folder.exists():  # the last thing that training writes
        fit_in_pieces(cfg, run)
    run.update(evaluation=evaluate_run(run, cfg.evaluation))
    run.seal()
    run.update(status="finished", ended=time.time())
    close_wandb(cfg.logger, headline(run.record), failed=False)
    shutil.rmtree(run.checkpoint.parent, ignore_errors=True)


def leave(cfg: DictConfig, run: Run, error: BaseException) -> None:
    """Record why a run ends before its end. What another attempt can use stays."""
    full = disk_is_full(error)
    stopped = full or isinstance(error, KeyboardInterrupt)
    with contextlib.suppress(OSError):  # on a full disk the record stays what it was, "running"
        run.update(status="interrupted" if stopped else "failed", error=traceback.format_exc())
    close_wandb(cfg.logger, {}, failed=True)
    if full:
        raise ValueError(
            f"the disk of {str(run.folder)!r} is full ({error}): free space and give the same command again, it goes "
            "on where it was"
        ) from error


def fit_in_pieces(cfg: DictConfig, run: Run) -> None:
    """`fit`, and again from the last checkpoint in twice as many pieces whenever the device runs out of memory; a
    resumed run goes on in as many as it had. `ValueError` where single rows do not fit, either."""
    require_kinds(cfg)
    rows, pieces = cfg.data.batch_size, max(cfg.trainer.volatile.pieces, run.record.get("pieces", 1))
    while True:
        run.update(pieces=pieces)
        try:
            return fit(cfg, run, pieces)
        except torch.OutOfMemoryError as error:
            problem = str(error).partition("\n")[0]
        pieces = more_pieces(cfg, pieces, problem)
        print(f"out of memory ({problem}): a micro-batch of {rows} rows is computed in {pieces} pieces from here on")
        gc.collect()  # what the attempt held
        torch.cuda.empty_cache()


def more_pieces(cfg: DictConfig, pieces: int, problem: str) -> int:
    """In how many pieces it is to be tried next; `ValueError` where more of them are no way out."""
    more = min(2 * pieces, cfg.data.batch_size)
    if pieces >= cfg.data.batch_size:
        raise ValueError(
            f"a step runs out of memory even row by row ({problem}): choose a shorter data.length, "
            "trainer.volatile.activation_checkpointing=true, trainable=lora or a smaller model"
        )
    if cfg.trainer.volatile.devices * cfg.trainer.volatile.num_nodes > 1:  # the others wait for this one
        raise ValueError(
            f"a step runs out of memory ({problem}): give the same command with trainer.volatile.pieces={more}, it "
            "goes on from the last checkpoint"
        )
    return more


def fit(cfg: DictConfig, run: Run, pieces: int) -> None:
    """Train, and leave the converted model, the metrics and the drift in the run's folder."""
    volatile = cfg.trainer.volatile
    if volatile.threads:
        torch.set_num_threads(volatile.threads)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)  # only for what libraries draw (LoRA's A)
    skip = skips(cfg.trainer.on_nonfinite)
    resume = newest_whole(run.checkpoint.parent)
    if resume:
        print(f"resuming run {run.id} from {resume}")
    experiment = build(cfg)
    run.require_space(SPACE_IN_WEIGHTS * sum(p.nbytes for p in experiment.parent.model.parameters()))
    reference = reference_of(cfg, run, experiment, resume is not None)
    experiment.conversion.train()
    experiment.conversion.pieces = pieces
    fit_into_memory(cfg, experiment, pieces)
    if cfg.trainer.compile:
        experiment.denoiser.compile()
    table, interruption = MetricTable(run.folder / "metrics.csv", volatile.log_every), Interruption()
    guard = FiniteGuard(skip, volatile.log_every, run.nonfinite)
    check, drifting = SelfCheck(reference), DriftMonitor(reference, volatile.drift_every, table)
    trainer = make_trainer(cfg, run, experiment, (check, interruption, guard, table, drifting))
    begin, earlier = time.perf_counter(), run.record.get("train_seconds", 0.0) if resume else 0.0
    try:
        trainer.fit(experiment.conversion, datamodule=experiment.data, ckpt_path=resume, weights_only=True)
    except SystemExit:  # what Lightning makes of a KeyboardInterrupt
        raise KeyboardInterrupt from None
    except torch.OutOfMemoryError:
        if interruption.requested:
            raise KeyboardInterrupt from None
        raise
    finally:  # what an interrupted run has cost so far counts
        run.update(train_seconds=earlier + time.perf_counter() - begin)
    drift = measure(experiment.parent.model, reference)
    run.update(
        tokens=experiment.num_steps * experiment.step_tokens,
        train=table.last_validation() | {name: float(value) for name, value in trainer.callback_metrics.items()},
        drift=summary(drift),
        peak_memory=peak_memory(),
        selfcheck_seconds=check.seconds,
        skipped_steps=guard.skipped,
        diverged=table.diverged(),
    )
    drift.to_csv(run.folder / "drift.csv", index=False)
    table.write()
    save_model(experiment, run)
    if interruption.requested:  # in the last step
        raise KeyboardInterrupt


def reference_of(cfg: DictConfig, run: Run, experiment: Experiment, resumed: bool) -> Path:
    """The parent's weights, saved for drift to be measured against; `ValueError` where a run began with others."""
    parent = experiment.parent
    fingerprint = parent.fingerprint()
    if resumed and (began_with := run.record["parent"]["fingerprint"]) != fingerprint:
        raise ValueError(
            f"run {run.id} began with a parent of fingerprint {began_with}, and {parent.source!r} has {fingerprint} "
            "now: bring the old one back (model.revision), or begin again with force=true"
        )
    reference = Path(cfg.runs_dir).expanduser() / ".parents" / f"{fingerprint}.safetensors"
    save_reference(parent.model, reference)
    run.update(
        parent={"source": parent.source, "fingerprint": fingerprint},
        parameters=sum(p.numel() for p in parent.model.parameters()),
        steps=experiment.num_steps,
    )
    return reference


def fit_into_memory(cfg: DictConfig, experiment: Experiment, pieces: int) -> None:
    """Say what a step needs, and compute layers again in the backward where that is what makes it fit."""
    denoiser, volatile = experiment.denoiser, cfg.trainer.volatile
    # Lightning moves the model there later.
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    step = memory.Step(cfg.data.length, experiment.conversion.masking.views, cfg.trainer.precision, device)
    limit = memory.available(device) if volatile.memory_gb is None else int(volatile.memory_gb * memory.GB)
    teachers = experiment.conversion.objective.nbytes
    limit -= teachers
    plan = memory.plan(denoiser, step, cfg.data.batch_size, limit, volatile.activation_checkpointing, pieces)
    how = ", layers computed again in the backward" if plan.checkpointing else ""
    beside = f" beside {teachers / memory.GB:.2f} GB of teachers" if teachers else ""
    print(f"a step needs at most about {plan.estimate}{how}; {limit / memory.GB:.2f} GB are available{beside}")
    if plan.checkpointing:
        memory.checkpoint_activations(denoiser.model)


def skips(on_nonfinite: str) -> bool:
    if on_nonfinite not in ("stop", "skip"):
        raise ValueError(f"trainer.on_nonfinite {on_nonfinite!r} is unknown: choose stop or skip")
    return on_nonfinite == "skip"


def make_trainer(cfg: DictConfig, run: Run, experiment: Experiment, watches: Watches) -> lightning.Trainer:
    """The Lightning trainer of a run."""
    volatile = cfg.trainer.volatile
    val_every = min(volatile.val_every, experiment.num_steps)
    _, interruption, _, table, _ = watches
    callbacks = [
        *watches,
        Checkpoints(run.checkpoint, volatile.checkpoint_every, val_every, table, interruption),
    ]
    if volatile.progress_bar:
        callbacks.append(Progress())
    return lightning.Trainer(
        accelerator=cfg.trainer.accelerator,
        precision=cfg.trainer.precision,
        devices=volatile.devices,
        num_nodes=volatile.num_nodes,
        strategy=volatile.strategy,
        accumulate_grad_batches=cfg.trainer.accumulate,
        gradient_clip_val=cfg.trainer.clip,
        max_steps=experiment.num_steps,
        max_epochs=1,
        val_check_interval=val_every * cfg.trainer.accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=volatile.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=volatile.progress_bar,
        enable_model_summary=False,
        callbacks=callbacks,
        plugins=AtomicCheckpointIO(),
        logger=loggers(cfg.logger, run),
        default_root_dir=run.folder,
    )


def save_model(experiment: Experiment, run: Run) -> None:
    """The converted model as a Hugging Face folder, written beside and renamed."""
    temporary = run.folder / ".model.tmp"
    model = experiment.trainable.merged(experiment.parent.model)
    gate.save_model(model, temporary)
    experiment.parent.tokenizer.save_pretrained(temporary)
    shutil.rmtree(run.model_folder, ignore_errors=True)
    run.update(files={f"model/{name}": digest for name, digest in digests(temporary, [*temporary.rglob("*")]).items()})
    temporary.rename(run.model_folder)


def peak_memory() -> int:
    """Bytes: of the device where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@command
def main(cfg: DictConfig) -> dict[str, Any]:
    try:
        result = train(cfg)
    except Busy as busy:
        if is_sweep():  # the next job may be free
            print(busy)
            return {"id": None, "status": "busy"}
        print(f"busy: {busy}", file=sys.stderr)
        raise SystemExit(BUSY) from None
    show(Run.load(result["id"], cfg.runs_dir))
    return result


if __name__ == "__main__":
    sweep.run(main)
