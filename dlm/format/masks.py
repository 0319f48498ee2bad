"""The decoding mask of an attention pattern, compared pair by pair with the one that a program computes."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.types import Rows

NEAR = 2048  # all pairs of so many positions are compared
PAIRS = 2**23  # compared at a time
Sees = Callable[[Rows, Rows], Bool[Tensor, "*shape"]]  # may row q see column k?


def exported_mask(pattern: AttentionPattern) -> Sees:
    """What the exported code computes: a position sees its own and earlier blocks, or everything if nothing is
    cached."""

    def sees(q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        return pattern.block(k) <= pattern.block(q) if pattern.cacheable else (q.position + k.position) >= 0

    return sees


def first_difference(pattern: AttentionPattern, sees: Sees, length: int) -> tuple[int, int] | None:
    """The first pair (row, column) of positions at which the decoding mask of a pattern is not `sees`; None if there is
    none. Compares all pairs of the first `NEAR` positions of a row of `length` tokens, and its last block with the
    whole row, where even the longest window shows."""
    row = torch.arange(length)
    for rows, columns in (
        (row[:NEAR], row[:NEAR]),
        (row[(length - 1) // pattern.block_size * pattern.block_size :], row),
    ):
        for chunk in rows.split(max(1, PAIRS // length)):
            for differs in differences(pattern, sees, chunk[:, None], columns[None]):
                if differs.any():
                    n, column = differs.nonzero()[0].tolist()
                    return int(chunk[n]), column
    return None


def differences(
    pattern: AttentionPattern, sees: Sees, q: Int[Tensor, "Q 1"], k: Int[Tensor, "1 K"]
) -> Iterator[Bool[Tensor, "Q K"]]:
    """For each combination of streams in decoding, the pairs of positions at which a pattern is not `sees`. Finished
    tokens are in the clean stream, if there is one, and those of the current block in the noisy one."""
    q_block, k_block = q // pattern.block_size, k // pattern.block_size
    always = torch.ones_like(q + k, dtype=torch.bool)
    if pattern.clean_stream and pattern.noisy_stream:
        occurring = {(True, True): always, (False, True): k_block < q_block}
        occurring |= {(False, False): k_block == q_block, (True, False): k_block > q_block}
    else:
        occurring = {(not pattern.noisy_stream,) * 2: always}
    for are_clean, pairs in occurring.items():
        rows = [Rows(torch.full_like(p, c, dtype=torch.bool), p * 0, p) for p, c in zip((q, k), are_clean, strict=True)]
        yield (pattern.visible(*rows) != sees(*rows)) & pairs
