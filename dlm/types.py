"""The values passed between the stages, and the legend of their shapes.

    B rows of a batch        L tokens of a row          S columns that the network reads (L, or 2L for [noisy ; clean])
    K noisy views of a row   V vocabulary               N scored tokens of the batch, all rows together

In decoding, B are sequences.

A row may hold several packed documents. `document` numbers them within the row (-1 is padding) and `position` counts
from 0 inside each. A block is one of the pattern's grid of a document (`AttentionPattern.grid`), in training exactly as
in decoding.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields, replace
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor


class Movable:
    """A dataclass whose tensors, also nested ones, `to` moves and `pin_memory` pins. Lightning needs no more of a
    batch."""

    def to(self, *args: Any, **kwargs: Any):
        return moved(self, lambda tensor: tensor.to(*args, **kwargs))

    def pin_memory(self):
        return moved(self, Tensor.pin_memory)


def moved(value: Any, move: Callable[[Tensor], Tensor]) -> Any:
    """A tensor moved by `move`, or a `Movable`, dict or tuple with all tensors in it moved; anything else unchanged."""
    if isinstance(value, Tensor):
        return move(value)
    if isinstance(value, dict):
        return {key: moved(v, move) for key, v in value.items()}
    if isinstance(value, tuple):
        return tuple(moved(v, move) for v in value)
    if isinstance(value, Movable):
        return replace(value, **{f.name: moved(getattr(value, f.name), move) for f in fields(value)})
    return value


@dataclass  # not frozen, as a batch is not
class Images(Movable):
    """The images of a document, as the processor of the model gives them for its text: `of_images` are tensors of the
    images (`pixel_values`, `image_grid_thw`, …), which are concatenated along axis 0 over documents; `of_tokens` are
    tensors [1 T …] of the document's first T tokens (`token_type_ids`, …), 0 for those behind. The document has at
    least `num_tokens` tokens."""

    of_images: dict[str, Tensor]
    of_tokens: dict[str, Tensor] = field(default_factory=dict)
    num_tokens: int = 0

    @classmethod
    def of(cls, processed: Mapping[str, Any]) -> Images:
        """What a processor returns for one text with images, as tensors: `input_ids` [1 T] and all that is beside."""
        shape = processed["input_ids"].shape
        beside = {name: v for name, v in processed.items() if name not in ("input_ids", "attention_mask")}
        of_tokens = {name: v for name, v in beside.items() if v.shape[:2] == shape}
        return cls({name: v for name, v in beside.items() if name not in of_tokens}, of_tokens, shape[1])


@dataclass  # not frozen: Lightning assigns the fields of a loader's batch when it converts them to trainer.precision
class Batch(Movable):
    """Clean rows (or a single one, [L]). `maskable` is False on prompts, padding and other context. `fill` are tokens
    that only fill a document's last block and that no loss scores, though they are noised as all others. None: none.
    `halved` are tokens that a loss scores at half their weight. `images` are, for each row, the images of its documents
    by their number; None: no document has any."""

    x0: Int[Tensor, "*B L"]
    maskable: Bool[Tensor, "*B L"]
    document: Int[Tensor, "*B L"]
    position: Int[Tensor, "*B L"]
    fill: Bool[Tensor, "*B L"] | None = None
    images: tuple[dict[int, Images], ...] | None = None
    halved: Bool[Tensor, "*B L"] | None = None

    @property
    def targets(self) -> Bool[Tensor, "*B L"]:
        """The tokens that a loss may score."""
        return self.maskable if self.fill is None else self.maskable & ~self.fill


@dataclass(frozen=True)
class Noised(Movable):
    """A corrupted batch: `xt` is `x0` with the tokens `masked` hidden. `weight` is the likelihood weight of a masked
    token (1/t in the continuous limit) and 0 elsewhere. `scored` are the tokens in the loss; None means the masked
    ones. The K views of a row stand side by side, [B K·L]."""

    xt: Int[Tensor, "B KL"]
    masked: Bool[Tensor, "B KL"]
    weight: Float[Tensor, "B KL"]
    scored: Bool[Tensor, "B KL"] | None = None

    @property
    def in_loss(self) -> Bool[Tensor, "B KL"]:
        """Which tokens are in the loss."""
        return self.masked if self.scored is None else self.scored


@dataclass(frozen=True)
class Rows(Movable):
    """Rows or columns of the attention matrix, as the attention predicate knows them. `view` numbers the noisy views of
    a document if there are several; they see one clean stream and nothing of each other. `span` numbers the runs of
    tokens, such as those of an image, whose clean rows all see each other; -1 elsewhere, None: there are none."""

    clean: Bool[Tensor, "*shape"]
    document: Int[Tensor, "*shape"]
    position: Int[Tensor, "*shape"]
    view: Int[Tensor, "*shape"] | None = None
    span: Int[Tensor, "*shape"] | None = None

    def map(self, function: Callable[[Tensor], Tensor]) -> Rows:
        """Apply a function to every tensor."""
        tensors = (getattr(self, f.name) for f in fields(self))
        return Rows(*(None if t is None else function(t) for t in tensors))

    def __getitem__(self, index: Any) -> Rows:
        return self.map(lambda t: t[index])

    def layout(self) -> str:
        """A digest of the tensors, which must be on the CPU: equal rows have equal digests."""
        digest = hashlib.sha256(str(tuple(self.position.shape)).encode())
        for values in (self.clean, self.document, self.position, self.view, self.span):
            digest.update(b"" if values is None else values.contiguous().numpy().data)
        return digest.hexdigest()


@runtime_checkable
class Pattern(Protocol):
    """The part of an attention pattern that the stages use; see `dlm.attention.base`, which imports this module."""

    block_size: int

    def visible(self, q: Rows, k: Rows) -> Bool[Tensor, "*shape"]:
        """May row `q` see column `k`?"""


@dataclass(frozen=True)
class ModelInputs(Movable):
    """The inputs of the network. `rows` describes the S columns to the predicate of `pattern`, which may differ from
    step to step, since the block size may change. `scored[n]` is the flat index (row * S + column) of the hidden state
    that scores token n, with the token shift already applied. `read` are the indices in `scored`, sorted and without
    duplicates; None: not known. `layout` is a digest of `rows`, by which masks are reused without reading from the
    device; "": not known.

    `pictured` are the arguments of the model's own forward for the M documents with images, of T tokens each (padded on
    the right), and `source` says which of their tokens a column stands for (flat in [M T]; -1: of none of them). None:
    nothing is read but ids."""

    input_ids: Int[Tensor, "B S"]
    position_ids: Int[Tensor, "B S"]
    rows: Rows
    scored: Int[Tensor, " N"]
    pattern: Pattern
    layout: str = ""
    read: Int[Tensor, " R"] | None = None
    source: Int[Tensor, "B S"] | None = None
    pictured: dict[str, Tensor] | None = None

    def settled(self) -> ModelInputs:
        """With `layout` and `read`, which can be computed only while the tensors are on the CPU."""
        read = torch.zeros(self.input_ids.numel(), dtype=torch.bool).index_fill_(0, self.scored, True)
        return replace(self, layout=self.rows.layout(), read=read.nonzero()[:, 0])


@dataclass(frozen=True)
class Scored(Movable):
    """The scored tokens of a batch, in row order: their target, their likelihood weight, their flat index in [B L], and
    their weight in the loss (None: the likelihood weight)."""

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
    tokens that could have been scored; both count every one of the `views`. `inputs.scored` are the hidden states for
    `scored`, followed by those for the auxiliary losses; `needs` holds their further inputs, by the name of the
    loss."""

    inputs: ModelInputs
    scored: Scored
    num_tokens: int
    num_maskable: int
    views: int = 1
    needs: dict[str, Movable | None] = field(default_factory=dict)


@dataclass(frozen=True)
class LossOutput:
    """`loss` is minimised; `nll[n]` is the unweighted negative log-likelihood of scored token n, in nats."""

    loss: Float[Tensor, ""]
    nll: Float[Tensor, " N"]


def generator(*seeds: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator, for tensors of `device`, that is a pure function of its seeds (they are mixed, so (1, 2) and (2, 1)
    differ)."""
    mixed = 0
    for seed in seeds:
        mixed = (mixed * 6364136223846793005 + seed + 1442695040888963407) % 2**63
    return torch.Generator(device).manual_seed(mixed)
