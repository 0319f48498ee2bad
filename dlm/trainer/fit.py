"""The training of a run: from its settings and its last checkpoint to the converted model in its folder."""

from __future__ import annotations

import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import lightning
import torch
from lightning import Callback
from lightning.pytorch.callbacks import ProgressBar

from dlm.config.build import Experiment
from dlm.config.inputs import require_fingerprint
from dlm.config.settings import Runtime, Train
from dlm.config.training import Training
from dlm.config.values import EvaluationSettings
from dlm.data.external import summary_lines
from dlm.data.loading import num_workers
from dlm.data.validation import VERSION
from dlm.evaluation.drift import measure, save_reference, summary
from dlm.evaluation.longest import require_evaluable
from dlm.evaluation.suite import require_decodable
from dlm.logger.base import RunLogger
from dlm.model.denoiser import Denoiser
from dlm.runs.run import Run
from dlm.runs.storage import digests
from dlm.trainable import gate
from dlm.trainer.checkpoints import AtomicCheckpointIO, Checkpoints, newest_intact, require_same_sharding
from dlm.trainer.compilation import CompilerWatch, compile_layers
from dlm.trainer.drift_monitor import DriftMonitor
from dlm.trainer.final_validation import FinalValidation
from dlm.trainer.finite import FiniteGuard, skips_nonfinite
from dlm.trainer.interruption import Interruption
from dlm.trainer.metrics import MetricTable
from dlm.trainer.processes import Follower, SameStart, cluster, launching
from dlm.trainer.resources import device_of, fit_into_memory, space_of, step_of
from dlm.trainer.selfcheck import SelfCheck
from dlm.trainer.strategy import SHARDED, strategy_of
from dlm.trainer.telemetry import Telemetry, peak_memory

RequiredCallbacks = tuple[SameStart, Interruption, FiniteGuard, MetricTable, FinalValidation]


def fit(training: Training, run: Run, pieces: int, loggers: Sequence[RunLogger] = ()) -> None:
    """Train a run, each micro-batch in `pieces`, and write the converted model, the metrics and the drift to its
    folder, and what they show to the `loggers`. Raises `KeyboardInterrupt` if the run was asked to stop, after its last
    checkpoint."""
    settings, runtime = training.settings, training.settings.runtime
    device = device_of(settings.trainer.accelerator)
    if runtime.threads:
        torch.set_num_threads(runtime.threads)
    lightning.seed_everything(settings.seed, workers=True, verbose=False)  # only libraries draw from it (LoRA's A)
    skip, workers = skips_nonfinite(settings.trainer.on_nonfinite), num_workers(runtime.workers, device)
    # Only the first process sets a damaged checkpoint aside. `SameStart` stops followers that began before it had.
    resume = if_exists(run.checkpoint) if isinstance(run, Follower) else newest_intact(run.checkpoint.parent)
    if resume:
        require_same_sharding(resume, runtime.strategy == SHARDED)
        print(f"resuming run {run.id} from {resume}")
    experiment = training.build(for_shards=runtime.strategy == SHARDED)
    require_evaluation(training.evaluation, experiment)
    if training.decoder and training.evaluation:
        require_decodable(experiment.denoiser, training.decoder)
    experiment.conversion.reference = save_parent_reference(settings, run, experiment, resume is not None)
    if not isinstance(run, Follower):
        record_budget(run, experiment)
    if experiment.parent.deferred:
        print("the layers are empty until they are sharded: no process loads all of them")
    note_half_weights(experiment.denoiser)
    experiment.conversion.train()
    experiment.conversion.pieces, experiment.data.workers = pieces, workers
    fit_into_memory(settings, experiment, pieces)
    experiment.trainable.ready(experiment.parent.model)
    if settings.trainer.compile:
        compile_layers(experiment.denoiser, device)
    table, interruption = MetricTable(run.folder / "metrics.csv", runtime.log_every), Interruption()
    guard, final = FiniteGuard(skip, runtime.log_every, run.nonfinite), FinalValidation(table)
    required = (SameStart(run, resume), interruption, guard, table, final)
    trainer = make_trainer(settings, run, experiment, required, training.callbacks, loggers)
    run_trainer(trainer, experiment, run, resume, interruption)
    if not isinstance(run, Follower):
        save_results(run, experiment, trainer, guard, final)
    if interruption.requested:  # in the last step
        raise KeyboardInterrupt


def run_trainer(
    trainer: lightning.Trainer, experiment: Experiment, run: Run, resume: Path | None, interruption: Interruption
) -> None:
    """Train from the checkpoint `resume` or from the start, and add the time to the record's `train_seconds`."""
    begin, earlier_seconds = time.perf_counter(), run.record.get("train_seconds", 0.0) if resume else 0.0
    try:
        with launching():
            trainer.fit(experiment.conversion, datamodule=experiment.data, ckpt_path=resume, weights_only=True)
    except SystemExit:  # Lightning turns a KeyboardInterrupt into this
        raise KeyboardInterrupt from None
    except RuntimeError:  # a step out of memory, or a worker that the same signal has ended
        if interruption.requested:
            raise KeyboardInterrupt from None
        raise
    finally:  # the time of an interrupted run counts as well
        run.update(train_seconds=earlier_seconds + time.perf_counter() - begin)


def require_evaluation(evaluation: EvaluationSettings | None, experiment: Experiment) -> None:
    """Raises `ValueError`, before training, if an evaluation needs rows longer than the model's positions."""
    if evaluation:
        sizes = (evaluation.length, evaluation.tasks_per_family, evaluation.max_new_tokens)
        require_evaluable(experiment.denoiser, experiment.parent.reader, *sizes, evaluation.families)


def note_half_weights(denoiser: Denoiser) -> None:
    """Print a note on stderr if the trained weights have 16 bits, whatever the precision of a step: they lose small
    updates without a word."""
    for dtype in {p.dtype for p in denoiser.parameters() if p.requires_grad and p.dtype.itemsize == 2}:
        print(
            f"the trained weights are {str(dtype).removeprefix('torch.')}: an update of less than "
            f"1/{4 / torch.finfo(dtype).eps:.0f} of a weight is lost; model.dtype=float32 keeps it",
            file=sys.stderr,
        )


def if_exists(checkpoint: Path) -> Path | None:
    return checkpoint if checkpoint.exists() else None


def save_results(
    run: Run, experiment: Experiment, trainer: lightning.Trainer, guard: FiniteGuard, final: FinalValidation
) -> None:
    """Write the metrics, the drift and the converted model to the run's folder and its record."""
    table = final.table
    last_metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    drift = measure(experiment.parent.model, experiment.conversion.reference)
    run.update(
        tokens=run.record["budget"]["tokens"],
        train=table.last_validation() | last_metrics | {f"{n}_final": value for n, value in final.metrics.items()},
        validation=VERSION,
        drift=summary(drift),
        peak_memory=peak_memory(),
        selfcheck_seconds=sum(check.seconds for check in trainer.callbacks if isinstance(check, SelfCheck)),
        skipped_steps=guard.skipped,
        diverged=table.diverged(),
    )
    drift.to_csv(run.folder / "drift.csv", index=False)
    for monitor in (callback for callback in trainer.callbacks if isinstance(callback, DriftMonitor)):
        monitor.send(trainer, drift)
    table.write()
    save_model(experiment, run)
    for logger in trainer.loggers:
        logger.log_model(run.model_folder)


def save_parent_reference(settings: Train, run: Run, experiment: Experiment, resumed: bool) -> Path:
    """Save the parent's weights, against which drift is measured, and return the file. Raises `ValueError` if a resumed
    run began with another parent or other data, or if the disk has no room for what this run will write."""
    parent = experiment.parent
    fingerprint, data = parent.fingerprint(), experiment.data.fingerprint()
    if resumed:
        began = f"run {run.id} began with"
        require_fingerprint(f"{began} a parent", run.record["parent"]["fingerprint"], parent.source, fingerprint)
        require_fingerprint(f"{began} data", run.record.get("data", {}).get("fingerprint"), "what is read", data)
    reference = run.folder.parent / ".parents" / f"{fingerprint}.safetensors"
    written = [path for path in (reference, *run.checkpoint.parent.glob("*.ckpt")) if path.exists()]
    needed = space_of(experiment, step_of(settings, experiment))
    run.require_space(needed - sum(path.stat().st_size for path in written))
    if not isinstance(run, Follower):
        save_reference(parent.model, reference, parent.deferred)
    run.update(
        parent={"source": parent.source, "fingerprint": fingerprint},
        data={"fingerprint": data},
        parameters=sum(p.numel() for p in parent.model.parameters()),
        steps=experiment.num_steps,
    )
    return reference


def record_budget(run: Run, experiment: Experiment) -> None:
    """Record and print what the training spends, in every unit of a budget."""
    spent = experiment.budget.spent(experiment.data, experiment.conversion, experiment.num_steps)
    data = experiment.data.summary(experiment.num_steps * experiment.budget.rows)
    run.update(budget=spent, data=run.record["data"] | ({"sources": data} if data else {}))
    amounts = (f"{value:,.4g} {unit}" for unit, value in spent.items() if value is not None)
    print(f"{experiment.num_steps:,} optimizer steps: {', '.join(amounts).replace('_', ' ')}")
    for line in summary_lines(data):
        print(line)


def make_trainer(
    settings: Train,
    run: Run,
    experiment: Experiment,
    required: RequiredCallbacks,
    callbacks: Sequence[Callback],
    loggers: Sequence[RunLogger],
) -> lightning.Trainer:
    """The Lightning trainer of a run, with the callbacks that every run needs and its own."""
    runtime, trainer = settings.runtime, settings.trainer
    val_every = min(runtime.val_every, experiment.num_steps)
    _, interruption, _, table, _ = required
    optional = optional_callbacks(runtime, callbacks, loggers)
    for logger in loggers:
        logger.tokens_per_step = experiment.budget.rows * experiment.data.length
    checkpoints = Checkpoints(run.checkpoint, runtime.checkpoint_every, val_every, table, interruption)
    return lightning.Trainer(
        accelerator=trainer.accelerator,
        precision=trainer.precision,
        devices=trainer.devices,
        num_nodes=trainer.num_nodes,
        strategy=strategy_of(settings, experiment),
        accumulate_grad_batches=trainer.accumulate,
        gradient_clip_val=trainer.clip,
        max_steps=experiment.num_steps,
        max_epochs=1,
        val_check_interval=val_every * trainer.accumulate,
        check_val_every_n_epoch=None,
        log_every_n_steps=runtime.log_every,
        num_sanity_val_steps=0,
        use_distributed_sampler=False,
        enable_progress_bar=any(isinstance(c, ProgressBar) for c in optional),  # else Lightning adds its own
        enable_model_summary=False,
        callbacks=[*required, *optional, checkpoints],
        plugins=[AtomicCheckpointIO(), *cluster()],
        logger=list(loggers),
        default_root_dir=run.folder,
    )


def optional_callbacks(runtime: Runtime, callbacks: Sequence[Callback], loggers: Sequence[RunLogger]) -> list[Callback]:
    """A run's own callbacks, and those that depend on where and how it runs."""
    optional = [c for c in callbacks if runtime.progress_bar or not isinstance(c, ProgressBar)]
    optional.append(CompilerWatch())  # on a GPU attention is compiled, whether or not the layers are
    return [*optional, Telemetry(runtime.log_every)] if loggers else optional


def save_model(experiment: Experiment, run: Run) -> None:
    """Write the converted model as a Hugging Face folder, under a temporary name that is then renamed."""
    temporary = run.folder / ".model.tmp"
    model = experiment.trainable.merged(experiment.parent.model)
    gate.save_model(model, temporary)
    experiment.parent.save(temporary)
    shutil.rmtree(run.model_folder, ignore_errors=True)
    run.update(files={f"model/{name}": digest for name, digest in digests(temporary, [*temporary.rglob("*")]).items()})
    temporary.rename(run.model_folder)
