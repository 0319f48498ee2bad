"""The interface of a benchmark, and the workbench that it measures on.

A benchmark is one Python file and one YAML. Its constructor refuses bad values before any compute, `run` measures and
returns the result for the JSON record, and `tables` shows this result.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Int
from rich.table import Table
from torch import Tensor
from transformers import PreTrainedModel

from dlm.attention.block import Block
from dlm.bench.peer import Dllm
from dlm.evaluation.timing import Clock
from dlm.masking.base import Masking
from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent
from dlm.model.positions import require_positions
from dlm.types import generator


@dataclass
class Workbench:
    """The model under test and how it is measured. Times are in seconds. `peak_tflops` (1e12 FLOP/s) and
    `peak_bandwidth_gbs` (1e9 bytes/s) are the machine's measured ceilings, None if unknown. `rebuild` makes the same
    workbench in another process; `peer` is another implementation that is measured, too, if there is one."""

    parent: Parent
    masking: Masking
    token_shift: bool
    device: torch.device
    dtype: torch.dtype
    gate_dtype: torch.dtype
    repeats: int
    warmup: int
    seed: int
    clock: Clock
    compile: bool = False  # the layers of all arms in training (see `Denoiser.compile`), our own steps in decoding
    peak_tflops: float | None = None
    peak_bandwidth_gbs: float | None = None
    rebuild: Callable[[], Workbench] | None = None
    peer: Dllm | None = None

    def __post_init__(self) -> None:
        self.attention = self.model.config._attn_implementation
        # The choice of a plain user of transformers: a mask in SDPA. Models without SDPA have only eager attention.
        self.plain_attention = "eager" if self.attention == "eager" else "sdpa"

    @property
    def model(self) -> PreTrainedModel:
        return self.parent.model

    def denoiser(self, block_size: int) -> Denoiser:
        """The model as a block diffusion model with clean context."""
        parent = self.parent
        return Denoiser(parent.model, Block(block_size), parent.mask_id, self.token_shift, parent.layer_types)

    def ids(self, rows: int, length: int) -> Int[Tensor, "B L"]:
        """Random tokens of the vocabulary without the mask token (on the CPU)."""
        vocabulary = self.model.get_input_embeddings().weight.shape[0]
        ids = torch.randint(0, vocabulary - 1, (rows, length), generator=generator(self.seed, rows, length))
        return ids + (ids >= self.parent.mask_id)

    @contextmanager
    def gate(self) -> Iterator[None]:
        """The model in the precision of the correctness gate: in bfloat16, near-ties would decide which tokens are
        generated, and rounding would hide an error in a gradient."""
        cast(self.model, self.device, self.gate_dtype)
        try:
            yield
        finally:
            cast(self.model, self.device, self.dtype)

    def check_positions(self, length: int, what: str) -> None:
        """`ValueError` for a row longer than the model's positions; `what` names the option."""
        require_positions(self.model, length, f"{what} {length}")


class Bench(ABC):
    """One benchmark."""

    @abstractmethod
    def run(self, bench: Workbench) -> dict[str, Any]:
        """Pass the correctness gate, measure, and return the result, ready for JSON."""

    @abstractmethod
    def tables(self, result: dict[str, Any]) -> list[Table]:
        """The result of `run` as tables, at most 100 columns wide."""


@torch.no_grad()
def cast(model: PreTrainedModel, device: torch.device, dtype: torch.dtype) -> None:
    """Move a model and cast its parameters, but not its buffers: in bfloat16, rotary frequencies would confuse
    positions."""
    model.to(device)
    for parameter in model.parameters():
        parameter.grad = None
        parameter.data = parameter.data.to(dtype)


def use(model: PreTrainedModel, implementation: str) -> None:
    """Switch the attention implementation of a model."""
    if model.config._attn_implementation != implementation:
        model.set_attn_implementation(implementation)


def require_at_least(minimum: int, **values: int) -> None:
    """`ValueError` for a value that is too small."""
    for name, value in values.items():
        if value < minimum:
            raise ValueError(f"{name} {value} must be at least {minimum}")


def require_divides(block_size: int, **lengths: int) -> None:
    """`ValueError` for a length that the block size does not divide."""
    require_at_least(1, block_size=block_size)
    for name, length in lengths.items():
        if length % block_size:
            divisors = ", ".join(str(b) for b in range(1, length + 1) if length % b == 0)
            raise ValueError(f"block_size {block_size} must divide {name} {length}: choose one of {divisors}")


def require_some(**lists: list) -> None:
    """`ValueError` for an empty list."""
    for name, values in lists.items():
        if not values:
            raise ValueError(f"{name} is empty: give at least one value, as in {name}=[8]")
