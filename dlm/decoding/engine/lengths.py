"""The number of slots that tokens need: blocks are always whole, as in training."""

from __future__ import annotations

from typing import TypeVar

from torch import Tensor

Length = TypeVar("Length", int, Tensor)


def whole_blocks(length: Length, block_size: int) -> Length:
    """A length rounded up to whole blocks."""
    return -(-length // block_size) * block_size


def room(tokens: Length, block_size: int, sliding: bool) -> Length:
    """The number of slots that `tokens` tokens need. A sliding block may begin at the last of them, and is whole as
    well."""
    return tokens + block_size - 1 if sliding else whole_blocks(tokens, block_size)
