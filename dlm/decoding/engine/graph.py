"""A step that costs the host almost nothing: compiled in parts, and replayed as a CUDA graph.

Otherwise a forward of a small batch takes as long as launching its kernels: for 8B parameters, five times as long as
reading the weights. All layers of a model share one compiled function, so that compiling takes as long for 36 layers as
for one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import nn

from dlm.attention.compilation import compiled
from dlm.decoding.engine.cache import SlotCache
from dlm.decoding.engine.canvas import Canvas
from dlm.model.denoiser import Denoiser

WARM_UP = 2  # steps before the capture, in which libraries choose kernels and allocate their workspaces


@contextmanager
def compiled_layers(denoiser: Denoiser) -> Iterator[None]:
    """A context in which every layer of the network, reading a `SlotCache`, runs the one compiled `call`. Raises
    `ValueError` for a model whose layers cannot be compiled."""
    layers = denoiser.layers()
    before = [layer._compiled_call_impl for layer in layers]
    try:
        for index, layer in enumerate(layers):
            layer._compiled_call_impl = partial(call_layer, layer, index)
        yield
    finally:
        for layer, implementation in zip(layers, before, strict=True):
            layer._compiled_call_impl = implementation


def call_layer(layer: nn.Module, index: int, *args: Any, **kwargs: Any) -> Any:
    """Run a layer compiled. It is given its own part of the cache: the whole cache, which it would index by its number,
    would make another version of every layer."""

    def own(value: Any) -> Any:
        return value.layers[index] if isinstance(value, SlotCache) else value

    return compiled(call)(layer, *map(own, args), **{name: own(value) for name, value in kwargs.items()})


def call(layer: nn.Module, *args: Any, **kwargs: Any) -> Any:
    return layer._call_impl(*args, **kwargs)


class Replay:
    """`step(canvas)`, recorded as a CUDA graph after `WARM_UP` calls and replayed from then on, if it `can_record`.
    Steps with and without pending rows are two graphs. One that may read tokens of images is neither recorded nor
    replayed: the host asks how many there are.

    A recording is valid as long as the canvas's tensors stay where they are; a step changes them in place.
    """

    def __init__(self, step: Callable[[Canvas], None], can_record: bool):
        self.step, self.can_record = step, can_record
        self.placement: object = None
        self.calls: dict[int, int] = {}
        self.graphs: dict[int, torch.cuda.CUDAGraph] = {}
        self.stream: torch.cuda.Stream | None = None

    def __call__(self, canvas: Canvas) -> None:
        if not self.can_record or canvas.rereads_images:
            return self.step(canvas)
        if self.placement is not canvas.placement:  # the tensors have moved
            self.placement, self.calls, self.graphs = canvas.placement, {}, {}
        pending = canvas.max_pending
        self.calls[pending] = self.calls.get(pending, 0) + 1
        if self.calls[pending] <= WARM_UP:
            return self.warm_up(canvas)
        if pending not in self.graphs:
            self.graphs[pending] = self.record(canvas)  # recording does not run anything
        self.graphs[pending].replay()

    def warm_up(self, canvas: Canvas) -> None:
        """A step on a separate stream, which PyTorch requires before a capture."""
        self.stream = self.stream or torch.cuda.Stream()  # one: libraries keep a workspace for each
        self.stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self.stream):
            self.step(canvas)
        torch.cuda.current_stream().wait_stream(self.stream)

    def record(self, canvas: Canvas) -> torch.cuda.CUDAGraph:
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self.step(canvas)
        return graph
