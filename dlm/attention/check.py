"""Checks that the predicate of an attention pattern keeps the promises of its class attributes. The check is exact for
every pair of rows of a small grid, needs no model, takes a few milliseconds, and names a pair of rows that is wrong.

    self             every row sees itself, so that no row has an empty softmax
    no leak          no noisy row sees the clean stream of its own or of a later block: it would learn to copy
    finished blocks  no row sees a later block, where blocks are cached or there is a clean stream
    streams          a clean row sees no noisy one, and no noisy row an earlier noisy block: decoding has neither
    causal           with `clean_causal`, or without a noisy stream, no clean row sees a later token
    envelope         it is a superset of `allowed`, and with `blockwise` the same for all rows and columns of a block
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.types import Rows

AttentionPattern = Any  # that of `dlm.attention.base`, which imports this module

POSITIONS = 64  # the least number of positions for small blocks: more than a sink or a window spans
BLOCKS = 8  # the least number of blocks
WIDTH = 32  # positions checked of a block: of a larger one, some of its beginning, its middle and its end


def grid(pattern: AttentionPattern) -> Rows:
    """The rows [S] of one document of a few blocks, in every stream of the pattern."""
    size = pattern.block_size
    offset = torch.arange(size)
    if size > WIDTH:
        third = WIDTH // 3
        middle = (size - third) // 2
        offset = torch.cat([offset[:third], offset[middle : middle + third], offset[third - WIDTH + third :]]).unique()
    blocks = torch.arange(max(BLOCKS, POSITIONS // size))
    return rows_at(pattern, (blocks[:, None] * size + offset).flatten())


def rows_at(pattern: AttentionPattern, position: Int[Tensor, " P"]) -> Rows:
    """The rows [S] of one document at these positions, in every stream that the pattern has."""
    streams = [False] * pattern.noisy_stream + [True] * pattern.clean_stream
    clean = torch.tensor(streams).repeat_interleave(len(position))
    return Rows(clean, torch.zeros_like(clean, dtype=torch.long), position.repeat(len(streams)))


@cache  # once for every class, settings and size
def check_pattern(pattern: AttentionPattern) -> None:
    """Raises `ValueError`, naming a pair of rows for which the predicate breaks a promise of the pattern's class."""
    if not (pattern.noisy_stream or pattern.clean_stream):
        raise pattern_error(pattern, "it has neither a noisy nor a clean stream", "set noisy_stream or clean_stream")
    pairs = Pairs(pattern, grid(pattern))
    alone = torch.eye(len(pairs.rows.position), dtype=torch.bool) & ~pairs.seen
    pairs.never(alone, "does not see itself,", pairs.mend)
    if pairs.both:
        check_streams(pairs)
    check_order(pairs)
    check_envelope(pairs)
    check_context(pairs)


class Pairs:
    """All pairs of rows: which of them [S S] the predicate allows (`seen`) and its envelope holds (`reached`), and the
    blocks of their rows [S 1] and columns [1 S]. `both` says whether the pattern has both streams, and `mend` what to
    mend."""

    def __init__(self, pattern: AttentionPattern, rows: Rows):
        self.pattern, self.rows, self.q, self.k = pattern, rows, rows[:, None], rows[None]
        self.seen, self.reached = (evaluate(pattern, name, self.q, self.k) for name in ("allowed", "envelope"))
        self.q_block, self.k_block = self.q.position // pattern.block_size, self.k.position // pattern.block_size
        self.both = pattern.noisy_stream and pattern.clean_stream
        self.mend = f"mend {type(pattern).__name__}.allowed"

    def never(self, pairs: Bool[Tensor, "S S"], what: str, remedy: str) -> None:
        """Raises `ValueError`, with the first of these pairs, if there is one."""
        if pairs.any():
            row, column = pairs.nonzero()[0].tolist()
            said = f"{label(self.rows, row)} {what} {label(self.rows, column)}"
            raise pattern_error(self.pattern, said, remedy)


def check_streams(pairs: Pairs) -> None:
    """Between the streams, rows see what they see in decoding."""
    q, k, seen, mend = pairs.q, pairs.k, pairs.seen, pairs.mend
    copies = seen & ~q.clean & k.clean & (pairs.k_block >= pairs.q_block)
    pairs.never(copies, "leaks: it is to predict its block, and sees", f"{mend}: only clean columns of earlier blocks")
    pairs.never(seen & q.clean & ~k.clean, "sees, unlike in decoding,", f"{mend}: clean rows see clean columns only")
    earlier = seen & ~q.clean & ~k.clean & (pairs.k_block < pairs.q_block)
    pairs.never(earlier, "sees, unlike in decoding,", f"{mend}: earlier blocks are seen in the clean stream")


def check_order(pairs: Pairs) -> None:
    """No row sees a later block, and no causal row a later token."""
    pattern, q, k, mend = pairs.pattern, pairs.q, pairs.k, pairs.mend
    if pairs.both or pattern.cacheable:
        remedy = mend if pairs.both else f"{mend}, or set cacheable = False"
        pairs.never(pairs.seen & (pairs.k_block > pairs.q_block), "sees the later block of", remedy)
    if pattern.clean_causal or not pattern.noisy_stream:
        remedy = f"{mend}, or set clean_causal = False" if pattern.noisy_stream else f"{mend}: it predicts that token"
        later = pairs.seen & q.clean & k.clean & (k.position > q.position)
        pairs.never(later, "sees the later token of", remedy)


def check_envelope(pairs: Pairs) -> None:
    """The envelope holds what is allowed and, if it is blockwise, whole blocks."""
    pattern, reached = pairs.pattern, pairs.reached
    cover = f"let {type(pattern).__name__}.envelope cover it"
    pairs.never(pairs.seen & ~reached, "is outside the envelope but allowed to see", cover)
    if pattern.blockwise:
        first = first_of_block(pairs.rows, pattern.block_size)
        pairs.never(
            reached != reached[first][:, first],
            "has, by its envelope, another answer than the first row of its block for",
            "set blockwise = False, or give an envelope that looks at positions only through self.block",
        )


def check_context(pairs: Pairs) -> None:
    """Of a single stream, every row behind the first block sees something of an earlier one."""
    has_context = (pairs.seen & (pairs.k_block < pairs.q_block)).any(1) | (pairs.q_block[:, 0] == 0)
    if not pairs.both and not has_context.all():
        remedy = f"{pairs.mend}, or set clean_stream = True if it speaks of clean columns"
        raise pattern_error(pairs.pattern, "there are rows that see nothing of an earlier block", remedy)


def evaluate(pattern: AttentionPattern, name: str, q: Rows, k: Rows) -> Bool[Tensor, "S S"]:
    """The predicate `name` for all pairs of rows. Raises `ValueError` unless it returns booleans."""
    answer = getattr(pattern, name)(q, k)
    if not isinstance(answer, Tensor) or answer.dtype != torch.bool:
        kind = answer.dtype if isinstance(answer, Tensor) else type(answer).__name__
        raise pattern_error(pattern, f"{name} gives {kind}", "let it give a tensor of booleans")
    return answer.expand(q.position.shape[0], k.position.shape[1])


def first_of_block(rows: Rows, block_size: int) -> Int[Tensor, " S"]:
    """For every row, the index of the first row of its stream and block."""
    cell = 2 * (rows.position // block_size) + rows.clean
    return (cell[:, None] == cell).int().argmax(1)


def label(rows: Rows, index: int) -> str:
    return f"{'clean' if rows.clean[index] else 'noisy'} position {int(rows.position[index])}"


def pattern_error(pattern: AttentionPattern, what: str, remedy: str) -> ValueError:
    name = type(pattern).__name__
    return ValueError(f"attention pattern {name} at block_size {pattern.block_size}: {what}. To mend it, {remedy}")
