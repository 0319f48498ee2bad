"""The number of slots that tokens need: blocks are always whole, as in training."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

from dlm.attention.base import AttentionPattern, BlockAnchor

Length = TypeVar("Length", int, Tensor)


def whole_blocks(length: Length, block_size: int) -> Length:
    """A length rounded up to whole blocks."""
    return -(-length // block_size) * block_size


def room(tokens: int, pattern: AttentionPattern, sliding: bool) -> int:
    """The number of slots that `tokens` tokens need at most. A block that slides, or whose grid begins behind the
    prompt, may begin at the last of them, and is whole as well."""
    anywhere = sliding or pattern.block_anchor is not BlockAnchor.ABSOLUTE
    return tokens + pattern.block_size - 1 if anywhere else whole_blocks(tokens, pattern.block_size)
