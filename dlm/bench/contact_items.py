"""The items of a first contact with a device: `python -m dlm.bench.contact_items ITEM DEVICE SCALE PEAKS FILE` runs one
and writes its result to the file. `dlm.bench.first_contact` runs all.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path

import torch

from dlm.bench import contact_checks, contact_speed
from dlm.bench.contact import SCALES, Contact, Result
from dlm.runs.storage import write_atomically


def items() -> dict[str, Callable[[Contact], Result]]:
    """Every item by its name."""
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
