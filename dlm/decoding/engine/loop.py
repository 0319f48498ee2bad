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
from typing import final

from dlm.attention.base import AttentionPattern
from dlm.decoding.engine.canvas import Canvas, Generation
from dlm.decoding.engine.lengths import room
from dlm.decoding.engine.mixed import Member
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.decoding.engine.session import BatchSession, BlockSession, Session
from dlm.model.denoiser import Denoiser


class Loop(ABC):
    """Makes the forwards. A `CommitRule` decides what they commit."""

    sliding: bool = False  # whether the current block begins at the first masked token, not on the grid of blocks
    compiles: bool = False  # whether a step can be compiled
    join_at: float = 1.0  # waiting prompts join when this fraction of a batch is free

    def takes(self, pattern: AttentionPattern) -> str | None:
        """None, or the reason why this loop cannot decode under the pattern: a clause of an error message."""
        return None

    def mode(self, denoiser: Denoiser) -> Denoiser:
        """The denoiser that reads the canvas: this one, unless the loop uses the same weights differently."""
        return denoiser

    @abstractmethod
    def session(
        self, denoiser: Denoiser, longest: int = 0, compile: bool = False, replay: bool = True, kept_tokens: int = 0
    ) -> Session:
        """A session of this loop's forwards, with a denoiser of its `mode`. No prompt with its new tokens will be
        longer than `longest` tokens; 0: that is not known. `compile` and `replay` as in a `Request`. Of prompts and
        answers that have left, `kept_tokens` tokens may be kept for prompts that begin in the same way."""

    @final
    def generate(self, denoiser: Denoiser, rule: CommitRule, request: Request) -> list[Generation]:
        """Decode every prompt with a denoiser of this loop's `mode`: one generation per prompt, in order."""
        longest = max(map(len, request.prompts), default=0) + request.max_new_tokens
        session = self.session(denoiser, longest, request.compile, request.replay)
        waiting = request.by_length()
        generations: dict[int, Generation] = {}
        while waiting or session:
            free = request.batch_size - len(session)
            if waiting and free >= (request.batch_size * self.join_at if session else 1):
                joining, waiting = waiting[:free], waiting[free:]
                session.add(request, rule, joining, tickets=joining)
            else:
                session.step()
            generations |= session.harvest(keep_places=bool(waiting))
        return [generations[i] for i in range(len(request.prompts))]


class Blocks(Loop):
    """Decodes one block after another."""

    compiles = True
    join_at = 0.25  # each joining costs a separate forward

    def __init__(self, sliding: bool = False):
        self.sliding = sliding

    def session(self, denoiser, longest=0, compile=False, replay=True, kept_tokens=0):
        num_slots = room(longest, denoiser.pattern, self.sliding) if longest else 0
        return BlockSession(denoiser, self.sliding, num_slots, compile, replay, kept_tokens)


class Batches(Loop):
    """Decodes prompts that join together side by side until all are finished. Shapes follow the contents of the
    canvas."""

    canvas: type[Canvas] = Canvas
    drops_finished: bool = False  # whether finished sequences leave the canvas; False if `begin` has state per sequence

    @abstractmethod
    def begin(self, denoiser: Denoiser, rule: CommitRule, canvas: Canvas, request: Request) -> Callable[[], None]:
        """The function that makes one forward of this canvas and commits its predictions."""

    def spare(self, denoiser: Denoiser) -> int:
        """The number of slots after the end of the longest sequence."""
        return 0

    def session(self, denoiser, longest=0, compile=False, replay=True, kept_tokens=0):
        def begin(member: Member, index: list[int]) -> tuple[Canvas, Callable[[], None]]:
            request = member.request
            tokens = max(len(request.prompts[n]) for n in index) + request.max_new_tokens
            num_slots = room(tokens, denoiser.pattern, self.sliding) + self.spare(denoiser)
            canvas = self.canvas(denoiser, request, index, num_slots, sliding=self.sliding)
            return canvas, self.begin(denoiser, member.rule, canvas, request)

        return BatchSession(denoiser, self.sliding, begin, self.drops_finished)
