"""A loop decodes a request: it decides which forwards are made of which sequences.

One forward of a sequence reads [pending ; current]: `pending` are finished tokens whose keys and values are not yet in
the cache (the prompt at first, later the block that was just finished), `current` is the block being denoised. So the
prompt and every finished block are written by a forward that denoises as well, and n denoising steps cost n forwards.
Patterns that cannot cache read the whole canvas in every forward instead. In AR decoding, blocks have one token, which
the last pending token scores, so nothing is read as `current`.

Sequences are independent: a finished one leaves the batch, and waiting prompts take its place. On a CPU, shapes follow
the contents, so that a step computes no padding. On a GPU, shapes are fixed: a finished sequence keeps its place until
another takes it, the step is replayed as a CUDA graph, and the host waits for the device only to see which sequences
have finished and, where a batch is so large that rows cost time, whether any has pending tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from functools import partial

import torch

from dlm.attention.base import AttentionPattern
from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.decoding.engine.graph import Replay
from dlm.decoding.engine.lengths import room, whole_blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.step import step
from dlm.model.denoiser import Denoiser

# Prompts join a batch when this fraction of it is free: each joining costs a separate forward.
JOIN_AT = 0.25
POLL = 4  # forwards between two reads of `finished` from a GPU; with free shapes it is read after every forward
FREE_ROWS = 128  # rows of a forward that a GPU computes in the time in which it reads the weights
BUCKET = 256  # fixed shapes have a multiple of this many slots, so that few shapes are compiled


class Loop(ABC):
    """Makes the forwards. A `CommitRule` decides what they commit."""

    sliding: bool = False  # whether the current block begins at the first masked token, not on the grid of blocks
    compiles: bool = False  # whether a step can be compiled

    def takes(self, pattern: AttentionPattern) -> str | None:
        """None, or the reason why this loop cannot decode under the pattern: a clause of an error message."""
        return None

    def mode(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser that reads the canvas: this one, unless the loop uses the same weights differently."""
        return denoiser

    @abstractmethod
    def generate(self, denoiser: Denoiser, rule: CommitRule, request: Request) -> list[Generation]:
        """Decode every prompt with a denoiser of this loop's `mode`: one generation per prompt, in order."""


class Blocks(Loop):
    """Decodes one block after another."""

    compiles = True

    def __init__(self, sliding: bool = False):
        self.sliding = sliding

    def generate(self, denoiser, rule, request):
        device, closed = denoiser.model.device, is_closed(rule, request)
        fixed_shapes, compiles = request.compile or device.type != "cpu", request.compile and closed
        first_step = partial(step, denoiser, rule=rule, generator=request.generator, stop=request.stop)
        further_step = Replay(
            partial(first_step, rule=rule.on(device), compile=True) if compiles else first_step,
            can_record=closed and request.replay and replays(device),
        )
        waiting, num_slots = request.by_length(), self.num_slots(denoiser, request, fixed_shapes)
        generations: dict[int, Generation] = {}
        canvas: Canvas | None = None
        while waiting or canvas is not None:
            free = request.batch_size - (0 if canvas is None else len(canvas.live))
            if waiting and free >= (request.batch_size * JOIN_AT if canvas is not None else 1):
                joining, waiting = waiting[:free], waiting[free:]
                new = Canvas(denoiser, request, joining, num_slots, fixed_shapes, self.sliding)
                first_step(new)
                request.report(new)
                canvas = new if canvas is None else canvas.join(new)
            else:
                for _ in range(POLL if fixed_shapes else 1):
                    canvas.make_room_for_pending(fixed_shapes and has_costly_padding(denoiser, canvas))
                    further_step(canvas)
                    request.report(canvas)
            generations |= canvas.harvest(keep_places=fixed_shapes and bool(waiting))
            if not canvas.live and not (fixed_shapes and waiting):  # waiting prompts take the idle places
                canvas = None
        return [generations[i] for i in range(len(request.prompts))]

    def num_slots(self, denoiser: Denoiser, request: Request, fixed_shapes: bool) -> int:
        """The slots of a canvas that has room for each of the prompts."""
        size = denoiser.pattern.block_size
        longest = max((room(len(p) + request.max_new_tokens, size, self.sliding) for p in request.prompts), default=0)
        return whole_blocks(longest, BUCKET) if fixed_shapes else longest


class Batches(Loop):
    """Decodes `batch_size` prompts side by side until all are finished, then the next ones. Shapes follow the contents
    of the canvas."""

    canvas: type[Canvas] = Canvas
    drops_finished: bool = False  # whether finished sequences leave the canvas; False if `begin` has state per sequence

    @abstractmethod
    def begin(self, denoiser: Denoiser, rule: CommitRule, canvas: Canvas, request: Request) -> Callable[[], None]:
        """The function that makes one forward of this canvas and commits its predictions."""

    def spare(self, denoiser: Denoiser) -> int:
        """The number of slots after the end of the longest sequence."""
        return 0

    def generate(self, denoiser, rule, request):
        size, order = denoiser.pattern.block_size, request.by_length()
        generations: dict[int, Generation] = {}
        for first in range(0, len(order), request.batch_size):
            index = order[first : first + request.batch_size]
            longest = len(request.prompts[index[-1]]) + request.max_new_tokens
            num_slots = room(longest, size, self.sliding) + self.spare(denoiser)
            canvas = self.canvas(denoiser, request, index, num_slots, sliding=self.sliding)
            forward = self.begin(denoiser, rule, canvas, request)
            while not bool(canvas.finished.all()):
                forward()
                request.report(canvas)
                if self.drops_finished:
                    generations |= canvas.harvest()
            generations |= canvas.results(canvas.live)
        return [generations[i] for i in range(len(order))]


def has_costly_padding(denoiser: Denoiser, canvas: Canvas) -> bool:
    """Whether the rows for pending tokens, of which there are none in most steps, cost more than to ask for them."""
    pattern = denoiser.pattern
    return pattern.cacheable and pattern.noisy_stream and 2 * canvas.block_size * len(canvas) > FREE_ROWS


def is_closed(rule: CommitRule, request: Request) -> bool:
    """Whether a step needs nothing from the host and draws from no generator of the caller."""
    return request.stop is None and rule.temperature == 0


def replays(device: torch.device) -> bool:
    """Whether a step can be replayed as a CUDA graph on this device."""
    return device.type == "cuda"
