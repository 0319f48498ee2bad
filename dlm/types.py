"""The values passed between the stages, and the legend of their shapes.

    B rows of a batch        L tokens of a row          S columns the network reads (L, or 2L for [noisy ; clean])
    N masked tokens of the batch (all rows together)    V vocabulary

A row may hold several packed documents. `document` numbers them within the row (-1 is padding) and `position` counts
from 0 inside each, so a block is `position // block_size` of one document, in training exactly as in decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Movable:
    """Moves every tensor of a dataclass and of what it holds; all that Lightning asks of a batch."""

    def to(self, *args: Any, **kwargs: Any):
        return replace(self, **{f.name: moved(getattr(self, f.name), *args, **kwargs) for f in fields(self)})


def moved(value: Any, *args: Any, **kwargs: Any) -> Any:
    """`value.to(...)` of what can move, and of the values of a dict."""
    if isinstance(value, dict):
        return {key: moved(v, *args, **kwargs) for key, v in value.items()}
    return value.to(*args, **kwargs) if isinstance(value, Tensor | Movable) else value


@dataclass  # not frozen: Lightning converts what a loader gives to trainer.precision field by field (here nothing)
class Batch(Movable):
    """Clean rows (or a single one, [L]). `maskable` is False on prompts, padding and other context."""

    x0: Int[Tensor, "*B L"]
    maskable: Bool[Tensor, "*B L"]
    document: Int[Tensor, "*B L"]
    position: Int[Tensor, "*B L"]


@dataclass(frozen=True)
class Noised(Movable):
    """A corrupted batch: `xt` is `x0` with `masked` hidden; `weight` is the likelihood weight of a masked token
    (1/t in the continuous limit) and 0 elsewhere. `scored` are the tokens that the loss looks at, None: those that are
    hidden. Several views of the same tokens stand side by side: KL = views L."""

    xt: Int[Tensor, "B KL"]
    masked: Bool[Tensor, "B KL"]
    weight: Float[Tensor, "B KL"]
    scored: Bool[Tensor, "B KL"] | None = None

    @property
    def in_loss(self) -> Bool[Tensor, "B KL"]:
        """The tokens that the loss looks at."""
        return self.masked if self.scored is None else self.scored


@dataclass(frozen=True)
class Rows(Movable):
    """What the attention predicate knows of a row or column of the attention matrix. `view` numbers the noisy views of
    a document where there are several; they see one clean stream and nothing of each other."""

    clean: Bool[Tensor, "*shape"]
    document: Int[Tensor, "*shape"]
    position: Int[Tensor, "*shape"]
    view: Int[Tensor, "*shape"] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Rows:
        """Every tensor through a function."""
        tensors = (getattr(self, f.name) for f in fields(self))
        return Rows(*(None if t is None else function(t) for t in tensors))

    def __getitem__(self, index: Any) -> Rows:
        return self.map(lambda t: t[index])

    def layout(self) -> str:
        """A name for rows on the CPU: equal rows, equal names."""
        digest = hashlib.sha256(str(tuple(self.position.shape)).encode())
        for values in (self.clean, self.document, self.position, self.view):
            digest.update(b"" if values is None else values.contiguous().numpy().data)
        return digest.hexdigest()


@runtime_checkable
class Pattern(Protocol):
    """What of an attention pattern the stages ask for; see `dlm.attention.base`, which is built on this module."""

    block_size: int

    def visible(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        """May row `q` see column `k`?"""


@dataclass(frozen=True)
class ModelInputs(Movable):
    """What the network reads. `scored[n]` is the flat index (row * S + column) of the hidden state that scores token
    n, with the token shift already applied; `rows` describes the S columns for the attention predicate, that of
    `pattern`: it belongs to the step, since the block size may change from one to the next. `layout` names the rows, so
    that masks can be used again without a look at the device; "" is no name. `read` are the rows in `scored`, each once
    and in order; None: not known."""

    input_ids: Int[Tensor, "B S"]
    position_ids: Int[Tensor, "B S"]
    rows: Rows
    scored: Int[Tensor, " N"]
    pattern: Pattern
    layout: str = ""
    read: Int[Tensor, " R"] | None = None

    def settled(self) -> ModelInputs:
        """With what is known of it on the CPU alone: a name for its rows, and the rows that are read."""
        read = torch.zeros(self.input_ids.numel(), dtype=torch.bool).index_fill_(0, self.scored, True)
        return replace(self, layout=self.rows.layout(), read=read.nonzero()[:, 0])


@dataclass(frozen=True)
class Scored(Movable):
    """The scored tokens of a batch, in row order: their target, their likelihood weight, where they are (flat in
    [B L]), and their weight in the loss, None: the likelihood weight."""

    target: Int[Tensor, " N"]
    weight: Float[Tensor, " N"]
    index: Int[Tensor, " N"]
    loss_weight: Float[Tensor, " N"] | None = None

    def __getitem__(self, chunk: slice) -> Scored:
        parts = (getattr(self, f.name) for f in fields(self))
        return Scored(*(None if part is None else part[chunk] for part in parts))


@dataclass(frozen=True)
class Prepared(Movable):
    """A corrupted batch, ready for the network. `num_tokens` is the size of the batch and `num_maskable` the number of
    tokens it could have scored, both once for each of its `views`. `inputs.scored` are the rows of `scored` and then
    those of the auxiliary losses; `needs` is what each of these needs beside them, by its name."""

    inputs: ModelInputs
    scored: Scored
    num_tokens: int
    num_maskable: int
    views: int = 1
    needs: dict[str, Movable | None] = field(default_factory=dict)


@dataclass(frozen=True)
class LossOutput:
    """`loss` is what is minimised; `nll[n]` the unweighted negative log-likelihood of masked token n, in nats."""

    loss: Float[Tensor, ""]
    nll: Float[Tensor, " N"]


def generator(*seeds: int) -> torch.Generator:
    """A CPU generator that is a pure function of its seeds (they are mixed, so (1, 2) and (2, 1) differ)."""
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 6364136223846793005 + seed + 1442695040888963407) % 2**63
    return torch.Generator().manual_seed(mixed)
