"""How many slots tokens need: blocks are always whole, as in training."""

from __future__ import annotations


def whole_blocks(length, block_size: int):
    """A length (a number or a tensor) rounded up to whole blocks: a block is always whole, as in training."""
    return -(-length // block_size) * block_size


def room(tokens, block_size: int, sliding: bool):
    """The slots that so many tokens (a number or a tensor) need. A sliding block may begin at the last of them, and is
    whole as well."""
    return tokens + block_size - 1 if sliding else whole_blocks(tokens, block_size)
