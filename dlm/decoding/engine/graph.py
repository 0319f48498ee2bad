"""A step that costs the host almost nothing: compiled, and replayed as a CUDA graph.

Otherwise a forward of a small batch takes as long as launching its kernels: for 8B parameters, five times as long as
reading the weights.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache

import torch

from dlm.decoding.engine.canvas import Canvas

WARM_UP = 2  # steps before the capture, in which libraries choose kernels and allocate their workspaces


@cache
def compiled(step: Callable[..., None]) -> Callable[..., None]:
    """The whole step as one compiled function."""
    return torch.compile(step, fullgraph=True, dynamic=False)


class Replay:
    """`step(canvas)`, recorded as a CUDA graph after `WARM_UP` calls and replayed from then on, if it `can_record`.

    A recording is valid as long as the canvas's tensors stay where they are; a step changes them in place.
    """

    def __init__(self, step: Callable[[Canvas], None], can_record: bool):
        self.step, self.can_record = step, can_record
        self.placement: object = None
        self.calls = 0
        self.graph: torch.cuda.CUDAGraph | None = None

    def __call__(self, canvas: Canvas) -> None:
        if not self.can_record:
            return self.step(canvas)
        if self.placement is not canvas.placement:  # the tensors have moved
            self.placement, self.calls, self.graph = canvas.placement, 0, None
        self.calls += 1
        if self.calls <= WARM_UP:
            self.warm_up(canvas)
        else:
            self.graph = self.graph or self.record(canvas)  # recording does not run anything
            self.graph.replay()

    def warm_up(self, canvas: Canvas) -> None:
        """A step on a separate stream, which PyTorch requires before a capture."""
        stream = torch.cuda.Stream()
        stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(stream):
            self.step(canvas)
        torch.cuda.current_stream().wait_stream(stream)

    def record(self, canvas: Canvas) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(canvas)
        return graph
