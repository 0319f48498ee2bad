"""How several processes train one run: each with the whole model, or with its share of the layers."""

from __future__ import annotations

from lightning.pytorch.strategies import ModelParallelStrategy, Strategy

from dlm.config.build import Experiment
from dlm.config.settings import Train
from dlm.model.sharding import sharded_layers
from dlm.model.vision import reads_images

SHARDED = "fsdp2"  # the strategy that shards the layers
# Some weights of a vision tower are read by no loss, and none of them where a micro-batch has no images.
SOME_UNREAD = "ddp_find_unused_parameters_true"


def strategy_of(settings: Train, experiment: Experiment) -> str | Strategy:
    """Lightning's strategy. Raises `ValueError` for one that is unknown, and for what shards cannot do."""
    name = settings.runtime.strategy
    if name in ("auto", "ddp") and settings.trainer.processes > 1 and reads_images(experiment.parent.model.config):
        return SOME_UNREAD
    if name == "auto" or name.startswith("ddp"):
        return name
    if name != SHARDED:
        raise ValueError(f"runtime.strategy {name!r} is unknown: choose auto, ddp or {SHARDED}")
    sharded_layers(experiment.parent.model)
    if experiment.conversion.optimizer_builder.reads_whole_matrices:
        raise ValueError(f"runtime.strategy={SHARDED}: the optimizer reads whole matrices: choose optimizer=adamw")
    if experiment.trainable.quantises:
        raise ValueError(f"runtime.strategy={SHARDED}: weights in four bits are not sharded: choose trainable=lora")
    if experiment.conversion.pieces > 1:
        raise ValueError(f"runtime.strategy={SHARDED}: pieces need gradients of whole weights: set runtime.pieces=1")
    return ModelParallelStrategy(settings.trainer.processes, 1, save_distributed_checkpoint=False)
