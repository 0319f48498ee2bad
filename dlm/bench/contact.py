"""What the items of a first contact with a device are given.

An item is a function of a `Contact`. A result is a dict of measured values. What is checked has `error` and `allowed`,
and an item that checks something has `ok`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
import yaml

from dlm.attention import block_sparse
from dlm.bench.base import Workbench
from dlm.config.folders import CONF
from dlm.evaluation.timing import clock_of
from dlm.masking.uniform import Uniform
from dlm.model.parent import Parent, new_parent

Result = dict[str, Any]


@dataclass(frozen=True)
class Scale:
    """The sizes of a first contact: `models` are options of `model` by the size that they stand for, `length` and
    `block` the tokens of a training row and of a block, `prompt` and `new` those of a decoded sequence, `small_block`,
    `prompts` and `answer` those of the small model, `matmul` the rows of a square matrix, `copy` the bytes of a
    buffer."""

    models: dict[str, str]
    dtype: str
    attention: str
    length: int
    block: int
    prompt: int
    new: int
    small_block: int
    prompts: tuple[int, ...]
    answer: int
    batches: tuple[int, ...]
    rounds: int
    matmul: int
    copy: int


SCALES = {
    "full": Scale(
        {"1.5B": "random_1_5b", "4B": "random_4b", "8B": "random_8b"},
        dtype="bfloat16",
        attention=block_sparse.NAME,
        length=4096,
        block=32,
        prompt=512,
        new=128,
        small_block=32,
        prompts=(5, 40, 70, 100, 33, 64),
        answer=96,
        batches=(32,),
        rounds=5,
        matmul=8192,
        copy=2**32,
    ),
    "tiny": Scale(
        dict.fromkeys(("1.5B", "4B", "8B"), "tiny_random"),
        dtype="float32",
        attention="sdpa",  # uncompiled FlexAttention is slow
        length=64,
        block=8,
        prompt=16,
        new=16,
        small_block=4,
        prompts=(5, 9),
        answer=4,
        batches=(2,),
        rounds=1,
        matmul=256,
        copy=2**22,
    ),
}


@dataclass(frozen=True)
class Contact:
    """The device, the scale and the ceilings that were measured: `tflops` (1e12 FLOP/s) and `gbs` (1e9 bytes/s).
    `keep(result)` puts what an item has measured so far where its time limit leaves it."""

    device: torch.device
    scale: Scale
    peaks: dict[str, float] = field(default_factory=dict)
    keep: Callable[[Result], None] = lambda result: None

    def parent(self, size: str) -> Parent:
        """A random parent of a size."""
        return self.made(size, self.scale.dtype, self.scale.attention)

    def made(self, size: str, dtype: str, attention: str = block_sparse.NAME, **shape: Any) -> Parent:
        """A random parent of a size, with `shape` for other values of its config."""
        option = yaml.safe_load((CONF / "model" / f"{self.scale.models[size]}.yaml").read_text())
        config = option["config"] | shape
        return new_parent(config, option["tokenizer"], 0, attention, dtype=dtype, device=str(self.device), check=False)

    def workbench(self, parent: Parent) -> Workbench:
        """The bench on which speeds are measured: everything compiled, without the token shift."""
        dtype = parent.model.dtype
        return Workbench(
            parent=parent,
            masking=Uniform(),
            token_shift=False,
            device=self.device,
            dtype=dtype,
            gate_dtype=dtype,
            repeats=self.scale.rounds,
            warmup=1,
            seed=0,
            clock=clock_of(self.device),
            compile=True,
            peak_tflops=self.peaks.get("tflops"),
            peak_bandwidth_gbs=self.peaks.get("gbs"),
        )


def error_of(actual: torch.Tensor, expected: torch.Tensor) -> float:
    """|actual - expected| / |expected| in the 2-norm."""
    wide = torch.promote_types(actual.dtype, torch.float32)
    return float((actual.to(wide) - expected.to(wide)).norm() / expected.to(wide).norm())
