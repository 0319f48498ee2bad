"""The memory that the images of a step take beside its decoder, by the images of the first rows of the data."""

from __future__ import annotations

import torch
from transformers import PreTrainedModel
from transformers.initialization import no_init_weights

from dlm.data.module import PackedData
from dlm.data.packing import collate
from dlm.model.pictured import pictured
from dlm.model.skeleton import skeleton_config
from dlm.model.tower import image_bytes, vision_weights
from dlm.model.vision import auto_class
from dlm.types import Batch

ROWS = 64  # of which the one with the largest images stands for all


def bytes_of_images(model: PreTrainedModel, data: PackedData, activations: torch.dtype) -> tuple[int, int]:
    """The bytes that autograd keeps of the images of one row, without and with activation checkpointing, given the type
    of the activations. Of rows with fewer images a step needs less."""
    if data.processor is None:
        return 0, 0
    rows = (collate([data.train_rows[index]]) for index in range(min(ROWS, len(data.train_rows))))
    largest = max(rows, key=size_of_images)
    if not any(largest.images or ()):
        return 0, 0
    stored = next(vision_weights(model)).dtype.itemsize
    without, again = (size * activations.itemsize // stored for size in image_bytes(model, pictured(largest)[0]))
    return without, again


def planned_bytes(empty: PreTrainedModel, data: PackedData, activations: torch.dtype) -> tuple[int, int]:
    """`bytes_of_images` for an `empty` model, of whose tower weights without values are allocated, which takes no
    memory."""
    with no_init_weights():
        model = auto_class(empty.config).from_config(skeleton_config(empty.config), dtype=empty.dtype)
    return bytes_of_images(model, data, activations)


def size_of_images(batch: Batch) -> int:
    """The number of values in the images of a batch."""
    documents = (images for row in batch.images or () for images in row.values())
    return sum(value.numel() for images in documents for value in images.of_images.values())
