"""Keys and values of sequences that have left a session, for prompts that begin as they did: the next turn of a
conversation, or the instructions that all prompts share, are not read twice.

Under a pattern that can be cached, the keys and values of a finished block depend on nothing behind it. So whole blocks
of equal tokens have equal keys and values, whoever wrote them. With images they have not, so those are always read.

    H heads        n tokens        D width of a key
"""

from __future__ import annotations

from collections import OrderedDict

from jaxtyping import Float
from torch import Tensor

from dlm.decoding.engine.canvas import Canvas
from dlm.model.denoiser import Denoiser

Layers = list[tuple[Float[Tensor, "H n D"], Float[Tensor, "H n D"]]]


class Prefixes:
    """Keeps sequences of `max_tokens` tokens in all; those that were not used for longest go first."""

    def __init__(self, denoiser: Denoiser, max_tokens: int):
        self.max_tokens, self.block_size = max_tokens, denoiser.pattern.block_size
        # With the shift, the token before the current block is read in any case: it scores the block's first.
        self.spared = int(denoiser.token_shift)
        self.kept: OrderedDict[tuple[int, ...], Layers] = OrderedDict()

    def keep(self, canvas: Canvas, row: int) -> None:
        """Keep the finished blocks of a sequence that leaves."""
        length = int(canvas.written[row])
        tokens = tuple(canvas.x[row, :length].tolist())
        if canvas.shows_images(row) or not 0 < length <= self.max_tokens:
            return
        if any(shared(tokens, other) == length for other in self.kept):
            return
        for other in [other for other in self.kept if shared(tokens, other) == len(other)]:
            del self.kept[other]
        self.kept[tokens] = canvas.cache.saved(row, length)
        while sum(map(len, self.kept)) > self.max_tokens:
            self.kept.popitem(last=False)

    def fill(self, canvas: Canvas) -> None:
        """Write into the cache of a canvas, before its first forward, what is known of its prompts."""
        for row, start in enumerate(canvas.start.tolist()):
            if canvas.shows_images(row):
                continue
            tokens = tuple(canvas.x[row, : max(start - self.spared, 0)].tolist())
            best = max(self.kept, key=lambda other: shared(tokens, other), default=())
            if length := shared(tokens, best) // self.block_size * self.block_size:
                self.kept.move_to_end(best)
                canvas.cache.load(row, len(canvas), [(k[:, :length], v[:, :length]) for k, v in self.kept[best]])
                canvas.written[row] = length


def shared(one: tuple[int, ...], other: tuple[int, ...]) -> int:
    """The number of tokens with which both begin."""
    return next((i for i, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))
