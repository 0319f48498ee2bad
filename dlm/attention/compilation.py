"""Functions that torch compiles once for each shape."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache
from typing import Any

import torch

# Versions of one function, beyond which torch runs it uncompiled: for types, batch sizes, widths, numbers of slots,
# windows, and with and without gradients or pending rows. Its own limit is 8.
VERSIONS = 64


def allow_versions() -> None:
    """Let torch compile up to `VERSIONS` versions of a function."""
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, VERSIONS)


@cache
def compiled(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function as one graph for each shape."""
    allow_versions()
    return torch.compile(function, fullgraph=True, dynamic=False)
