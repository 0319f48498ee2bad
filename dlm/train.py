"""Convert a parent: `python -m dlm.train [option=value ...]`, or sweep with `-m option=a,b other=1,2,3`."""

from __future__ import annotations

import contextlib
import errno
import resource
import shutil
import time
import traceback
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from dlm import memory, sweep
from dlm.build import Experiment, build, choices
from dlm.console import command
from dlm.drift import DriftMonitor, measure, save_reference, summary
from dlm.evaluate import evaluate_run, headline, is_evaluated, show
from dlm.loggers import Progress, close_wandb, loggers, merge_metrics
from dlm.runs import Run, environment

# What a run writes, in sizes of the model: the reference of drift, a checkpoint with two moments of AdamW, the result.
SPACE_IN_WEIGHTS = 5


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train and evaluate the run of a config, unless that is done already. Returns `id`, `status` and the record."""
    run = Run.create(cfg, choices())
    if run.status == "finished" and not cfg.force:
        print(f"run {run.id} is finished already: {run.folder} (force=true trains it again)")
        if not is_evaluated(run, cfg.evaluation):
            run.update(evaluation=evaluate_run(run, cfg.evaluation))
        return {"id": run.id, "status": "skipped", "record": run.record}
    if cfg.force:
        for folder in (run.folder / "metrics", run.folder / "measurements", run.checkpoint.parent, run.model_folder):
            shutil.rmtree(folder, ignore_errors=True)
    run.update(status="running", error=None, started=time.time(), **environment())
    try:
        if not run.model_folder.exists():  # the last thing that training writes
            fit(cfg, run)
        run.update(evaluation=evaluate_run(run, cfg.evaluation))
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        with contextlib.suppress(OSError):  # on a full disk the record stays what it was, "running"
            run.update(status="interrupted" if stopped else "failed", error=traceback.format_exc())
        close_wandb(cfg.logger, {}, failed=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise ValueError(f"{error}: free space and give the same command again, it goes on where it was") from error
        raise
    run.update(status="finished", ended=time.time())
    close_wandb(cfg.logger, headline(run.record), failed=False)
    shutil.rmtree(run.checkpoint.parent, ignore_errors=True)
    return {"id": run.id, "status": "finished", "record": run.record}


def fit(cfg: DictConfig, run: Run) -> None:
    """Train, and leave the converted model, the metrics and the drift in the run's folder."""
    volatile = cfg.trainer.volatile
    if volatile.threads:
        torch.set_num_threads(volatile.threads)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)  # only for what libraries draw (LoRA's A)
    resume = checkpoint_of(run)
    experiment = build(cfg)
    run.require_space(SPACE_IN_WEIGHTS * sum(p.nbytes for p in experiment.parent.model.parameters()))
    fingerprint = experiment.parent.fingerprint()
    reference = Path(cfg.runs_dir).expanduser() / ".parents" / f"{fingerprint}.safetensors"
    save_reference(experiment.parent.model, reference)
    run.update(
        parent={"source": experiment.parent.source, "fingerprint": fingerprint},
        parameters=sum(p.numel() for p in experiment.parent.model.parameters()),
        steps=experiment.num_steps,
    )
    experiment.conversion.train()
    fit_into_memory(cfg, experiment)
    if cfg.trainer.compile:
        experiment.denoiser.compile()
    trainer = make_trainer(cfg, run, experiment, reference)
    begin, earlier = time.perf_counter(), run.record.get("train_seconds", 0.0) if resume else 0.0
    try:
        trainer.fit(experiment.conversion, datamodule=experiment.data, ckpt_path=resume, weights_only=True)
    finally:  # what an interrupted run has cost so far counts
        run.update(train_seconds=earlier + time.perf_counter() - begin)
    drift = measure(experiment.parent.model, reference)
    run.update(
        tokens=experiment.num_steps * experiment.step_tokens,
        train={name: float(value) for name, value in trainer.callback_metrics.items()},
        drift=summary(drift),
        peak_memory=peak_memory(),
    )
    drift.to_csv(run.folder / "drift.csv", index=False)
    merge_metrics(run)
    save_model(experiment, run)


def fit_into_memory(cfg: DictConfig, experiment: Experiment) -> None:
    """Say what a step needs, and compute layers again in the backward where that is what makes it fit."""
    denoiser, volatile = experiment.denoiser, cfg.trainer.volatile
    # Lightning moves the model there later.
    on_gpu = cfg.trainer.accelerator != "cpu" and torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    step = memory.Step(cfg.data.length, experiment.conversion.masking.views, cfg.trainer.precision, device)
    limit = memory.available(device) if volatile.memory_gb is None else int(volatile.memory_gb * memory.GB)
    plan = memory.plan(denoiser, step, cfg.data.batch_size, limit, volatile.activation_checkpointing)
    how = ", layers computed again in the backward" if plan.checkpointing else ""
    print(f"a step needs at most about {plan.estimate}{how}; {limit / memory.GB:.2f} GB are available")
    if plan.checkpointing:
        memory.checkpoint_activations(denoiser.model)


def make_trainer(cfg: DictConfig, run: Run, experiment: Experiment, reference: Path) -> lightning.Trainer:
    """The Lightning trainer of a run."""
    volatile = cfg.trainer.volatile
    checkpoints = ModelCheckpoint(
        dirpath=run.checkpoint.parent,
        filename=run.checkpoint.stem,
        every_n_train_steps=volatile.checkpoint_every,
        enable_version_counter=False,
    )
    callbacks = [checkpoints, DriftMonitor(reference, volatile.drift_every)]
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
        val_check_interval=min(volatile.val_every, experiment.num_steps) * cfg.trainer.accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=volatile.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=volatile.progress_bar,
        enable_model_summary=False,
        callbacks=callbacks,
        logger=loggers(cfg.logger, run),
        default_root_dir=run.folder,
    )


def checkpoint_of(run: Run) -> Path | None:
    """The checkpoint to resume from. A damaged one is named before any compute is spent."""
    if not run.checkpoint.exists():
        return None
    try:
        torch.load(run.checkpoint, map_location="meta", weights_only=True, mmap=True)
    except Exception as error:  # whatever torch says about a damaged file
        raise ValueError(
            f"the checkpoint {run.checkpoint} is damaged ({type(error).__name__}): delete it to train this run from "
            "the start"
        ) from error
    print(f"resuming run {run.id} from {run.checkpoint}")
    return run.checkpoint


def save_model(experiment: Experiment, run: Run) -> None:
    """The converted model as a Hugging Face folder, written beside and renamed."""
    temporary = run.folder / ".model.tmp"
    model = experiment.trainable.merged(experiment.parent.model)
    model.save_pretrained(temporary)
    experiment.parent.tokenizer.save_pretrained(temporary)
    shutil.rmtree(run.model_folder, ignore_errors=True)
    temporary.rename(run.model_folder)


def peak_memory() -> int:
    """Bytes: of the device where there is one, else of the process."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
@command
def main(cfg: DictConfig) -> dict[str, Any]:
    result = train(cfg)
    show(Run.load(result["id"], cfg.runs_dir))
    return result


if __name__ == "__main__":
    sweep.run(main)
