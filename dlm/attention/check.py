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
    rows = grid(pattern)
    q, k = rows[:, None], rows[None]
    seen, reached = (evaluate(pattern, name, q, k) for name in ("allowed", "envelope"))
    q_block, k_block = q.position // pattern.block_size, k.position // pattern.block_size
    noisy_q, noisy_k, both = ~q.clean, ~k.clean, pattern.noisy_stream and pattern.clean_stream

    def never(pairs: Bool[Tensor, "S S"], what: str, remedy: str) -> None:
        if pairs.any():
            row, column = pairs.nonzero()[0].tolist()
            raise pattern_error(pattern, f"{label(rows, row)} {what} {label(rows, column)}", remedy)

    mend = f"mend {type(pattern).__name__}.allowed"
    never(torch.eye(len(rows.position), dtype=torch.bool) & ~seen, "does not see itself,", mend)
    if both:
        copies = seen & noisy_q & k.clean & (k_block >= q_block)
        never(copies, "leaks: it is to predict its block, and sees", f"{mend}: only clean columns of earlier blocks")
        never(seen & q.clean & noisy_k, "sees, unlike in decoding,", f"{mend}: clean rows see clean columns only")
        earlier = seen & noisy_q & noisy_k & (k_block < q_block)
        never(earlier, "sees, unlike in decoding,", f"{mend}: earlier blocks are seen in the clean stream")
    if both or pattern.cacheable:
        remedy = mend if both else f"{mend}, or set cacheable = False"
        never(seen & (k_block > q_block), "sees the later block of", remedy)
    if pattern.clean_causal or not pattern.noisy_stream:
        remedy = f"{mend}, or set clean_causal = False" if pattern.noisy_stream else f"{mend}: it predicts that token"
        never(seen & q.clean & k.clean & (k.position > q.position), "sees the later token of", remedy)
    never(
        seen & ~reached, "is outside the envelope but allowed to see", f"let {type(pattern).__name__}.envelope cover it"
    )
    if pattern.blockwise:
        first = first_of_block(rows, pattern.block_size)
        never(
            reached != reached[first][:, first],
            "has, by its envelope, another answer than the first row of its block for",
            "set blockwise = False, or give an envelope that looks at positions only through self.block",
        )
    has_context = (seen & (k_block < q_block)).any(1) | (q_block[:, 0] == 0)
    if not both and not has_context.all():
        remedy = f"{mend}, or set clean_stream = True if it speaks of clean columns"
        raise pattern_error(pattern, "there are rows that see nothing of an earlier block", remedy)


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
