"""How a request is decoded: which forwards are made of which sequences.

One forward of a sequence reads [pending ; current]: `pending` are finished tokens whose keys and values are not yet in
the cache (the prompt at first, later the block that was just finished), `current` is the block being denoised. So the
prompt and every finished block are written by a forward that denoises as well, and n denoising steps cost n forwards.
Patterns that cannot cache read the whole canvas in every forward instead. AR is the case of blocks of one token that
are scored by the last pending token alone, so nothing is left to read as `current`.

Sequences are independent: a finished one leaves the batch, and waiting prompts take its place. On a CPU a step reads
only what there is to read. On a GPU its shapes are fixed, a finished sequence keeps its place until another takes it,
the step is replayed as a CUDA graph, and the host waits for the device only to ask what is finished.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch

from dlm.attention.base import AttentionPattern
from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.decoding.engine.graph import Replay, compiled
from dlm.decoding.engine.lengths import room, whole_blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.step import step
from dlm.model.denoiser import Denoiser

# Prompts join a batch when this fraction of it is free: each joining costs a forward of its own.
JOIN_AT = 0.25
POLL = 4  # forwards between two looks at what is finished on a device; on the host, looking costs nothing
BUCKET = 256  # fixed shapes have a multiple of so many slots, so that few are compiled


class Loop(ABC):
    """Makes the forwards. What they commit is up to a `CommitRule`."""

    sliding: bool = False  # whether blocks begin at the first masked token in every forward, not on the grid
    compiles: bool = False  # whether a step can be compiled

    def takes(self, pattern: AttentionPattern) -> str | None:
        """None, or why this loop cannot decode under the pattern, as a clause."""
        return None

    def mode(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser that reads the canvas: this one, unless the loop uses the same weights in another way."""
        return denoiser

    @abstractmethod
    def generate(self, denoiser: Denoiser, rule: CommitRule, request: Request) -> list[Generation]:
        """Decode every prompt, in order, with a denoiser of this loop's `mode`."""


class Blocks(Loop):
    """One block after another."""

    compiles = True

    def __init__(self, sliding: bool = False):
        self.sliding = sliding

    def generate(self, denoiser, rule, request):
        waiting = request.by_length()
        fixed_shapes = request.compile or denoiser.model.device.type != "cpu"
        num_slots = self.num_slots(denoiser, request, fixed_shapes)
        rest = {"rule": rule, "generator": request.generator, "stop": request.stop}
        closed = is_closed(rule, request)
        first = partial(step, denoiser, **rest)
        one_step = compiled(step) if request.compile and closed else step
        further = Replay(partial(one_step, denoiser, **rest), closed and replays(denoiser.model.device))
        done: dict[int, Generation] = {}
        canvas: Canvas | None = None
        while waiting or canvas is not None:
            free = request.batch_size - (0 if canvas is None else len(canvas.live))
            if waiting and free >= (request.batch_size * JOIN_AT if canvas is not None else 1):
                chosen, waiting = waiting[:free], waiting[free:]
                new = Canvas(denoiser, request, chosen, num_slots, fixed_shapes, self.sliding)
                first(new)
                request.called(new)
                canvas = new if canvas is None else canvas.join(new)
            else:
                for _ in range(POLL if fixed_shapes else 1):
                    further(canvas)
                    request.called(canvas)
            done |= canvas.harvest(places_are_wanted=fixed_shapes and bool(waiting))
            if not canvas.live and not (fixed_shapes and waiting):  # an idle place is still a place
                canvas = None
        return [done[i] for i in range(len(request.prompts))]

    def num_slots(self, denoiser: Denoiser, request: Request, fixed_shapes: bool) -> int:
        """The slots of a canvas that has room for each of the prompts."""
        size = denoiser.pattern.block_size
        most = max((room(len(p) + request.max_new_tokens, size, self.sliding) for p in request.prompts), default=0)
        return whole_blocks(most, BUCKET) if fixed_shapes else most


class Batches(Loop):
    """`batch_size` prompts side by side until all are finished, then the next ones. Shapes follow what there is to
    read."""

    canvas: type[Canvas] = Canvas
    rows_leave: bool = False  # whether finished sequences leave, else they stay: what `begin` keeps has a row of each

    @abstractmethod
    def begin(self, denoiser: Denoiser, rule: CommitRule, canvas: Canvas, request: Request) -> Callable[[], None]:
        """What makes one forward of this canvas, and commits."""

    def spare(self, denoiser: Denoiser) -> int:
        """How many slots the canvas has behind the longest sequence."""
        return 0

    def generate(self, denoiser, rule, request):
        size, order = denoiser.pattern.block_size, request.by_length()
        done: dict[int, Generation] = {}
        for first in range(0, len(order), request.batch_size):
            chosen = order[first : first + request.batch_size]
            longest = len(request.prompts[chosen[-1]]) + request.max_new_tokens
            num_slots = room(longest, size, self.sliding) + self.spare(denoiser)
            canvas = self.canvas(denoiser, request, chosen, num_slots, sliding=self.sliding)
            forward = self.begin(denoiser, rule, canvas, request)
            while not bool(canvas.finished.all()):
                forward()
                request.called(canvas)
                if self.rows_leave:
                    done |= canvas.harvest()
            done |= canvas.results(canvas.live)
        return [done[i] for i in range(len(order))]


def is_closed(rule: CommitRule, request: Request) -> bool:
    """Whether a step asks the host for nothing, and draws from no generator of the caller's."""
    return request.stop is None and rule.temperature == 0


def replays(device: torch.device) -> bool:
    """Whether a step can be a CUDA graph there."""
    return device.type == "cuda"
