"""What the training of a run takes of the machine: the device, the room on the disk, the memory of a step."""

from __future__ import annotations

from dataclasses import replace

import torch

from dlm.config.build import Experiment
from dlm.config.settings import Train
from dlm.model.checkpointing import checkpoint_activations
from dlm.trainer import memory
from dlm.trainer.picture_memory import bytes_of_images
from dlm.trainer.step import Step
from dlm.trainer.strategy import SHARDED
from dlm.trainer.traced import Unknown


def step_of(settings: Train, experiment: Experiment) -> Step:
    """What the size of a training step depends on."""
    length, views, trainer = experiment.data.length, experiment.conversion.masking.views, settings.trainer
    device, is_sharded = device_of(trainer.accelerator), settings.runtime.strategy == SHARDED
    quantised = frozenset(map(id, experiment.trainable.quantised(experiment.parent.model)))
    return Step(length, views, trainer.precision, device, trainer.processes, is_sharded, quantised)


def space_of(experiment: Experiment, step: Step) -> int:
    """The bytes that a run has on the disk at most: the reference of drift, two checkpoints, each with both moments of
    AdamW for what is trained, and the result."""
    parameters = [*experiment.parent.model.parameters()]
    dtype = step.activations(experiment.parent.model)
    reference = sum(p.nbytes for p in parameters)
    weights = sum(step.stored(p, dtype) for p in parameters)
    trained = sum(step.stored(p, dtype) for p in parameters if p.requires_grad)
    return reference + 2 * (weights + 2 * trained) + weights


def device_of(accelerator: str) -> torch.device:
    """The device of Lightning's `accelerator`, on which a run trains and is evaluated."""
    on_gpu = accelerator != "cpu" and torch.cuda.is_available()
    return torch.device("cuda" if on_gpu else "cpu")


def fit_into_memory(settings: Train, experiment: Experiment, pieces: int) -> None:
    """Print the memory estimate of a step, and turn on activation checkpointing if the step needs it to fit. Raises
    `ValueError` if the step cannot fit."""
    denoiser, runtime, step = experiment.denoiser, settings.runtime, step_of(settings, experiment)
    step = replace(step, images=bytes_of_images(denoiser.model, experiment.data, step.activations(denoiser.model)))
    limit = memory.available(step.device) if runtime.memory_gb is None else int(runtime.memory_gb * memory.GB)
    teachers = experiment.conversion.objective.nbytes
    limit -= teachers
    try:
        plan = memory.plan(denoiser, step, experiment.data.batch_size, limit, runtime.activation_checkpointing, pieces)
    except Unknown as error:  # an estimate must not stop a run that would work
        print(f"what a step needs is not known ({error}): it is tried")
        if runtime.activation_checkpointing:
            checkpoint_activations(denoiser.model)
        return
    how = ", layers computed again in the backward" if plan.checkpointing else ""
    beside = f" beside {teachers / memory.GB:.2f} GB of teachers" if teachers else ""
    print(f"a step needs at most about {plan.estimate}{how}; {limit / memory.GB:.2f} GB are available{beside}")
    if plan.checkpointing:
        checkpoint_activations(denoiser.model)
