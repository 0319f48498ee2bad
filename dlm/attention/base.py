"""Which row of the attention matrix may see which column, as one predicate per pattern.

The dense mask (CPU, SDPA), the `BlockMask` (CUDA, FlexAttention), the mask of a decoding step and the picture in a
report are all computed from `visible`, so they agree by construction.
"""

from __future__ import annotations

import inspect
import random
from abc import ABCMeta, abstractmethod
from enum import Enum
from functools import cache
from typing import Any, Self, TypeVar

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.attention.check import check_pattern
from dlm.masking.base import Units
from dlm.types import Batch, Rows

Count = TypeVar("Count", int, Tensor)


class NoisePer(Enum):
    """The unit of tokens that share one noise level."""

    TOKEN = "token"
    BLOCK = "block"
    SEQUENCE = "sequence"


class BlockAnchor(Enum):
    """Where the grid of blocks begins: at the first token of a document, or where its prompt ends."""

    ABSOLUTE = "absolute"
    PROMPT = "prompt"


class FrozenPattern(ABCMeta):
    """The metaclass of patterns. After the constructor it stores the arguments as `settings`, by name, which freezes
    the attributes, and checks the predicate."""

    def __call__(cls, *args: Any, **kwargs: Any) -> AttentionPattern:
        pattern = super().__call__(*args, **kwargs)
        bound = inspect.signature(cls.__init__).bind(pattern, *args, **kwargs)
        bound.apply_defaults()
        _, *settings = bound.arguments.items()
        passed_on = {p.name for p in bound.signature.parameters.values() if p.kind is p.VAR_KEYWORD}
        pattern.settings = {name: value for name, value in settings if name not in passed_on} | bound.kwargs
        if "block_size" in pattern.settings:  # otherwise it wraps another pattern, which has been checked
            check_pattern(pattern)
        return pattern


class AttentionPattern(metaclass=FrozenPattern):
    """A pattern over a noisy stream, a clean stream, or [noisy ; clean].

    Blocks are anchored at position 0 of the document (`block_anchor=absolute`) or at the first token behind its prompt
    (`prompt`), in training and in decoding alike. `allowed` and `envelope` are given positions on this grid, on which
    blocks begin at multiples of `block_size` (see `to_grid`); the model is given the true ones.

    A pattern is a value: it never changes, and two of one class with the same settings are equal. `at(block_size)` is
    the same pattern with blocks of another size. To write a pattern, subclass, set the class attributes below, and
    define `allowed`. Further options are arguments of the constructor beside `block_size`, stored as attributes. The
    constructor checks that the predicate keeps the promises of the class attributes (`dlm.attention.check`).
    """

    noisy_stream: bool = True
    clean_stream: bool = False
    noise_per: NoisePer = NoisePer.BLOCK
    # Whether finished blocks keep their keys and values: no later token may be visible to them.
    cacheable: bool = True
    # Whether decoding shows all of `max_new_tokens` at once, or the canvas ends with the current block, behind which a
    # pattern that is cacheable sees nothing in any case.
    whole_canvas: bool = True
    requires_token_shift: bool = False
    # Whether clean row i sees no token after i, so that it may score token i+1 (the AR loss).
    clean_causal: bool = False
    block_anchor: BlockAnchor = BlockAnchor.ABSOLUTE
    # Whether `envelope` depends on positions only through `block`, so that all rows of a block have the same answer.
    blockwise: bool = True

    def __init__(self, block_size: int, noise_per: str | None = None, block_anchor: str | None = None):
        if block_size < 1:
            raise ValueError(f"block_size {block_size} must be at least 1")
        for name, value, kind in (("noise_per", noise_per, NoisePer), ("block_anchor", block_anchor, BlockAnchor)):
            if value is not None:
                values = [member.value for member in kind]
                if value not in values:
                    raise ValueError(f"attention.{name} {value!r} is unknown: choose one of {', '.join(values)}")
                setattr(self, name, kind(value))
        self.block_size = block_size

    def __setattr__(self, name: str, value: Any) -> None:
        if "settings" in self.__dict__:
            raise AttributeError(
                f"{type(self).__name__}.{name} cannot be set: a pattern never changes; at(block_size) gives one with "
                "another block size"
            )
        super().__setattr__(name, value)

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and attributes(other) == attributes(self)

    def __hash__(self) -> int:
        return hash((type(self), self.block_size))

    def at(self, block_size: int) -> Self:
        """This pattern with blocks of `block_size` tokens. Raises `ValueError` for a size that it cannot have."""
        return resized(self, block_size)

    @abstractmethod
    def allowed(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        """May row `q` see column `k`, both of one document? `q` and `k` broadcast against each other."""

    def envelope(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        """A superset of `allowed`, used to prune rows that no scored row depends on; evaluated once per block if
        `blockwise`. A pattern that is finer than its blocks may return the coarser pattern that it refines."""
        return self.allowed(q, k)

    def block(self, rows: Rows) -> Int[Tensor, "*shape"]:
        """The block of every row, counted from the start of its document."""
        return rows.position // self.block_size

    def to_grid(self, given: Count) -> Count:
        """How far the positions of a document are moved so that its blocks begin at multiples of `block_size`, if its
        first `given` tokens are a prompt. A first token alone is none: it may be all that the token shift cannot score
        of prose."""
        if self.block_anchor is BlockAnchor.ABSOLUTE:
            return given * 0
        return -given * (given > 1) % self.block_size

    def grid(self, batch: Batch) -> Int[Tensor, "B L"]:
        """The position of every token of a batch on the grid of blocks. A prompt are the tokens of a document before
        the first that may be masked."""
        if self.block_anchor is BlockAnchor.ABSOLUTE:
            return batch.position
        rows, length = batch.position.shape
        column, starts = torch.arange(length).expand(rows, -1), first_columns(batch)
        answer = torch.full_like(starts, length).scatter_reduce_(
            1, starts, torch.where(batch.maskable, column, length), "amin"
        )
        return batch.position + self.to_grid(answer.gather(1, starts) - starts)

    def block_columns(self, batch: Batch) -> Int[Tensor, "B L"]:
        """For every token of a batch, the column at which its block begins."""
        column = torch.arange(batch.position.shape[1])
        return torch.maximum(column - self.grid(batch) % self.block_size, first_columns(batch))

    def block_end(self, position: int, given: int) -> int:
        """The position behind the block that holds `position`, in a document with a prompt of `given` tokens."""
        return position + self.block_size - (position + self.to_grid(given)) % self.block_size

    def visible(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        """May row `q` see column `k`? Documents never see each other, nor do the noisy views of one; padding (document
        -1) sees only padding. Clean rows of one span see each other under every pattern."""
        return same_document(q, k) & within_span(q, k, self.allowed(q, k))

    def reaches(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        """May row `q` need column `k`? Like `visible`, with the `envelope`."""
        return same_document(q, k) & within_span(q, k, self.envelope(q, k))

    def check(self, length: int, token_shift: bool) -> None:
        """Raises `ValueError` for a row length (in tokens) or a token shift that this pattern cannot have."""
        if length % self.block_size:
            raise ValueError(
                f"block_size {self.block_size} must divide data.length {length}: choose one of "
                f"{', '.join(str(b) for b in range(1, length + 1) if length % b == 0)}"
            )
        if self.requires_token_shift and not token_shift:
            raise ValueError(
                f"attention={type(self).__name__.lower()} scores token i from position i-1: set token_shift=true"
            )

    def tail(self, length: int, given: int, rng: random.Random) -> int:
        """The number of EOS that training adds to a document of `length` tokens, of which the first `given` are its
        prompt, so that its last block is whole."""
        return -(length + self.to_grid(given)) % self.block_size

    def units(self, batch: Batch) -> Units:
        """The noise unit of every token of a batch."""
        rows, length = batch.position.shape
        serial = torch.arange(rows)[:, None] * length  # distinct per row; the units of a row count below it
        if self.noise_per is NoisePer.TOKEN:
            index = serial + torch.arange(length)
            return Units(index, torch.zeros_like(index), torch.ones_like(index))
        starts = first_columns(batch)
        if self.noise_per is NoisePer.SEQUENCE:
            sizes = torch.zeros(rows, length, dtype=torch.long)
            sizes.scatter_add_(1, starts, torch.ones_like(starts))
            return Units(serial + starts, batch.position, sizes.gather(1, starts))
        first = self.block_columns(batch)
        return Units(serial + first, self.grid(batch) % self.block_size, torch.full_like(first, self.block_size))


def first_columns(batch: Batch) -> Int[Tensor, "B L"]:
    """For every token of a batch, the column at which its document begins."""
    return torch.where(batch.position == 0, torch.arange(batch.position.shape[1]), 0).cummax(1).values


def attributes(pattern: AttentionPattern) -> dict[str, Any]:
    """The attributes of a pattern, without the arguments that they were computed from."""
    return {name: value for name, value in vars(pattern).items() if name != "settings"}


@cache  # one object for every size, since every step may call it
def resized(pattern: AttentionPattern, block_size: int) -> AttentionPattern:
    return type(pattern)(**(pattern.settings | {"block_size": block_size}))


def same_document(q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
    """Whether two rows are of one document and, if both are noisy, of one view."""
    same = q.document == k.document
    return same if q.view is None else same & (q.clean | k.clean | (q.view == k.view))


def within_span(q: Rows, k: Rows, allowed: Bool[Tensor, "*shape"]) -> Bool[Tensor, "*shape"]:
    """What is `allowed`, and whatever is in one span of the clean stream."""
    if q.span is None or k.span is None:
        return allowed
    return allowed | (q.clean & k.clean & (q.span == k.span) & (q.span >= 0))
