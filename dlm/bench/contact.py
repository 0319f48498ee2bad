"""The items of a first contact with a device: `python -m dlm.bench.contact ITEM DEVICE SCALE PEAKS FILE` runs one and
writes its result to the file. `dlm.bench.first_contact` runs all.

An item is a function of a `Contact`. A result is a dict of measured values. What is checked has `error` and `allowed`,
and an item that checks something has `ok`.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import yaml

from dlm.attention import block_sparse
from dlm.bench.base import Workbench
from dlm.config.folders import CONF
from dlm.evaluation.timing import clock_of
from dlm.masking.uniform import Uniform
from dlm.model.parent import Parent, new_parent
from dlm.runs.storage import write_atomically

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


def items() -> dict[str, Callable[[Contact], Result]]:
    """Every item by its name."""
    from dlm.bench import contact_checks, contact_speed

    return contact_checks.ITEMS | contact_speed.ITEMS


def run(
    item: str, device: str, scale: str, peaks: dict[str, float], keep: Callable[[Result], None] = lambda result: None
) -> Result:
    """Run an item. On a CPU nothing is compiled: there the run is a rehearsal of everything but the kernels. Elsewhere
    what torch refuses to compile is an error: uncompiled it would be slow, and another kernel than is asked for."""
    with (
        torch.compiler.set_stance("force_eager" if device == "cpu" else "default"),
        torch._dynamo.config.patch(fail_on_recompile_limit_hit=True),
    ):
        return items()[item](Contact(torch.device(device), SCALES[scale], peaks, keep))


if __name__ == "__main__":
    if sys.argv[2] == "cpu":
        torch.set_num_threads(1)  # tiny tensors

    def write(result: Result) -> None:
        write_atomically(Path(sys.argv[5]), json.dumps(result))

    write(run(*sys.argv[1:4], json.loads(sys.argv[4]), write))
