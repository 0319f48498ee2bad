"""What the size of a training step depends on, and the bytes that a parameter takes in it."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dlm.trainable.quantised import packed_bytes

PRECISIONS = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


@dataclass(frozen=True)
class Step:
    """A training step on rows of `length` tokens with `views` noisy views each, on one of `processes` devices, over
    which the layers are `sharded` or not. `precision` is the name that Lightning uses, such as `bf16-mixed`. The
    parameters whose `id`s are `quantised` will be in four bits. `images` are the bytes that autograd keeps of the
    images of a row, without and with activation checkpointing."""

    length: int
    views: int
    precision: str
    device: torch.device
    processes: int = 1
    sharded: bool = False
    quantised: frozenset[int] = frozenset()
    images: tuple[int, int] = (0, 0)

    def activations(self, model: PreTrainedModel) -> torch.dtype:
        """The type of the activations."""
        return PRECISIONS.get(self.precision.split("-")[0]) or model.dtype

    def stored(self, parameter: Tensor, activations: torch.dtype) -> int:
        """The bytes of a parameter, and so those of its gradient and of each of its moments. Under autocast it keeps
        its type; otherwise the whole model is cast, but for what is in four bits."""
        if id(parameter) in self.quantised:
            return packed_bytes(parameter.numel())
        return parameter.nbytes if self.is_mixed else parameter.numel() * activations.itemsize

    def copied(self, parameter: Tensor, activations: torch.dtype) -> int:
        """The bytes of the copy, in the type of the activations, that autocast makes of a matrix."""
        is_read = self.is_mixed and id(parameter) not in self.quantised
        has_copy = is_read and parameter.ndim > 1 and parameter.dtype != activations
        return has_copy * parameter.numel() * activations.itemsize

    def dequantised(self, parameter: Tensor, activations: torch.dtype) -> int:
        """The bytes that a matrix in four bits takes while it is multiplied: its values, and those that autocast makes
        of them."""
        sizes = {parameter.dtype.itemsize, activations.itemsize}
        return sum(sizes) * parameter.numel() if id(parameter) in self.quantised else 0

    @property
    def is_mixed(self) -> bool:
        return self.precision.endswith("mixed")
