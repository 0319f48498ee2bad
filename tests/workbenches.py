"""Benchmarks of tiny models."""

import torch
from common import MASK_ID

from dlm.bench import train
from dlm.bench.base import Workbench
from dlm.masking.uniform import Uniform
from dlm.model.layers import layer_types
from dlm.model.parent import Parent

FAST = ["repeats=2", "warmup=0", "model=tiny_random", "model.config.num_hidden_layers=2"]
SMALL = {
    "train": ["bench.length=32", "bench.block_size=8", "bench.memory=false"],
    "decode": ["bench.prompt_length=8", "bench.new_tokens=8", "bench.batch_sizes=[2]", "bench.block_sizes=[4]"],
    "sweep": ["bench.lengths=[16]", "bench.block_sizes=[4,8]", "bench.new_tokens=8"],
}


def workbench(model, token_shift=False, **kwargs) -> Workbench:
    parent = Parent(model, None, MASK_ID, layer_types(model), "test")
    found = {"masking": Uniform(), "repeats": 2, "warmup": 0, "seed": 0, "clock": lambda: 0.0} | kwargs
    dtype = next(model.parameters()).dtype
    return Workbench(
        parent=parent, token_shift=token_shift, device=torch.device("cpu"), dtype=dtype, gate_dtype=dtype, **found
    )


def losses_of(model, token_shift=False, **kwargs):
    bench = workbench(model, token_shift, **kwargs)
    task = train.Train(24, 2, 4, memory=False)
    case = task.case(bench)
    return bench, task, case, task.losses(bench, case)
