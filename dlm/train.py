"""Convert a parent: `python -m dlm.train [option=value ...]`, or sweep with `-m option=a,b other=1,2,3`."""

from __future__ import annotations

import time
import traceback
from pathlib import Path
from typing import Any

import hydra
import lightning
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from omegaconf import DictConfig

from dlm import sweep
from dlm.build import Experiment, build, choices
from dlm.drift import DriftMonitor, measure, save_reference, summary
from dlm.evaluate import evaluate_run, show
from dlm.loggers import Progress, loggers
from dlm.runs import Run, environment


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train and evaluate the run of a config, unless that is done already. Returns `id`, `status` and the record."""
    run = Run.create(cfg, choices())
    if run.status == "finished" and not cfg.force:
        print(f"run {run.id} is finished already: {run.folder} (force=true trains it again)")
        return {"id": run.id, "status": "skipped", "record": run.record}
    run.update(status="running", error=None, started=time.time(), **environment())
    try:
        fit(cfg, run)
        run.update(evaluation=evaluate_run(run, cfg.evaluation))
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | SystemExit)
        run.update(status="interrupted" if stopped else "failed", error=traceback.format_exc())
        raise
    run.update(status="finished", ended=time.time())
    run.checkpoint.unlink(missing_ok=True)
    return {"id": run.id, "status": "finished", "record": run.record}


def fit(cfg: DictConfig, run: Run) -> None:
    """Train, and leave the converted model, the metrics and the drift in the run's folder."""
    volatile = cfg.trainer.volatile
    if volatile.threads:
        torch.set_num_threads(volatile.threads)
    lightning.seed_everything(cfg.seed, workers=True, verbose=False)  # only for what libraries draw (LoRA's A)
    resume = checkpoint_of(run)
    experiment = build(cfg)
    fingerprint = experiment.parent.fingerprint()
    reference = Path(cfg.runs_dir).expanduser() / ".parents" / f"{fingerprint}.safetensors"
    save_reference(experiment.parent.model, reference)
    run.update(
        parent={"source": experiment.parent.source, "fingerprint": fingerprint},
        parameters=sum(p.numel() for p in experiment.parent.model.parameters()),
        steps=experiment.num_steps,
    )
    trainer = make_trainer(cfg, run, experiment, reference)
    begin = time.perf_counter()
    trainer.fit(experiment.conversion, datamodule=experiment.data, ckpt_path=resume, weights_only=True)
    drift = measure(experiment.parent.model, reference)
    run.update(
        train_seconds=time.perf_counter() - begin,
        tokens=experiment.num_steps
        * cfg.data.batch_size
        * cfg.data.length
        * cfg.trainer.accumulate
        * trainer.world_size,
        train={name: float(value) for name, value in trainer.callback_metrics.items()},
        drift=summary(drift),
        peak_memory=peak_memory(),
    )
    drift.to_csv(run.folder / "drift.csv", index=False)
    save_model(experiment, run)


def make_trainer(cfg: DictConfig, run: Run, experiment: Experiment, reference: Path) -> lightning.Trainer:
    """The Lightning trainer of a run."""
    volatile = cfg.trainer.volatile
    checkpoints = ModelCheckpoint(
        dirpath=run.checkpoint.parent,
        filename=run.checkpoint.stem,
        every_n_train_steps=volatile.checkpoint_every,
        enable_version_counter=False,
        save_on_exception=True,
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
        val_check_interval=min(
            volatile.val_every * cfg.trainer.accumulate, experiment.num_steps * cfg.trainer.accumulate
        ),
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
    if run.model_folder.exists():
        import shutil

        shutil.rmtree(run.model_folder)
    temporary.rename(run.model_folder)


def peak_memory() -> int:
    """Bytes: of the device where there is one, else of the process."""
    import resource

    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated()
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


@hydra.main(version_base="1.3", config_path="../conf", config_name="train")
def main(cfg: DictConfig) -> dict[str, Any]:
    result = train(cfg)
    show(Run.load(result["id"], cfg.runs_dir))
    return result


if __name__ == "__main__":
    sweep.run(main)
