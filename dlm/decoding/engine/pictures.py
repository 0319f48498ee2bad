"""What the network reads of the images of prompts. The tower runs once for a prompt, when its canvas is made.

B sequences        W slots of a canvas        R rows that a forward reads of each sequence
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from dlm.decoding.engine.request import Request
from dlm.model.context import Context, embedded, record
from dlm.model.denoiser import Denoiser
from dlm.model.pictured import joined, runs
from dlm.types import moved


@dataclass
class Pictures:
    """The `context` of every slot, [B W], and its `span` (see `Rows`; None: images are read causally). A forward may
    read tokens of images if it is the first, or if some are not in the cache (`rereads`): those in a current block, or
    all if the pattern caches nothing."""

    context: Context
    span: Int[Tensor, "B W"] | None
    rereads: bool
    first: bool = True

    @classmethod
    def of(
        cls, denoiser: Denoiser, request: Request, index: list[int], start: Int[Tensor, " B"], x: Int[Tensor, "B W"]
    ) -> Pictures:
        """The pictures of the prompts `index` of a request, which are on a canvas `x` and whose current blocks begin at
        `start`."""
        context = on_canvas(denoiser.model, request, index, x.shape[1])
        ahead = torch.arange(x.shape[1], device=x.device) >= start[:, None]
        span = None
        if denoiser.span_ids:
            in_span = torch.isin(x, torch.tensor(denoiser.span_ids, device=x.device)) & context.given
            # A span ends with the finished blocks: what is behind is not in the cache when they are written into it.
            span = runs(in_span & ~ahead)
        return cls(context, span, bool((context.given & ahead).any()) or not denoiser.pattern.cacheable)

    def blank(self, size: int) -> Pictures:
        """Those of so many sequences of text, on a canvas of as many slots, which has had its first forward."""
        given, embeds = (t.new_zeros(size, *t.shape[1:]) for t in (self.context.given, self.context.embeds))
        position = torch.arange(given.shape[1], device=given.device).expand(size, -1)[..., None]
        span = None if self.span is None else self.span.new_full(given.shape, -1)
        return Pictures(Context(given, embeds, position), span, rereads=False, first=False)

    def read(
        self,
        model: PreTrainedModel,
        slots: Int[Tensor, "B R"],
        ids: Int[Tensor, "B R"] | None,
        embeds: Float[Tensor, "B R D"] | None,
    ) -> dict[str, Any]:
        """The decoder's arguments for rows that read `ids` or, where they are None, `embeds` at these slots."""
        size, width = self.context.given.shape
        source = slots.clamp_max(width - 1) + width * torch.arange(size, device=slots.device)[:, None]
        flat = self.context.map(lambda t: t.flatten(0, 1))
        text = embedded(model, ids) if embeds is None else embeds
        has_given, self.first = self.first or self.rereads, False
        return flat.at(source, text, slots, has_given)

    def settle(self, written: Int[Tensor, " B"], finished: Bool[Tensor, " B"]) -> None:
        """Note whether later forwards may read tokens of images, given the slots that are in the cache and which
        sequences are finished. The host waits for the answer, so it asks no more once that is no."""
        if self.rereads:
            ahead = torch.arange(self.context.given.shape[1], device=written.device) >= written[:, None]
            self.rereads = bool((self.context.given & ahead & ~finished[:, None]).any())

    def keep(self, sequences: Int[Tensor, " M"]) -> None:
        """Remove all sequences but these."""
        self.context = self.context.map(lambda t: t[sequences])
        self.span = None if self.span is None else self.span[sequences]

    def widen(self, more: int) -> None:
        """Add slots of text behind those that there are."""

        def padded(values: Tensor) -> Tensor:
            return torch.cat([values, values.new_zeros(len(values), more, *values.shape[2:])], 1)

        behind = torch.arange(1, more + 1, device=self.context.given.device)[:, None]
        positions = torch.cat([self.context.position_ids, self.context.position_ids[:, -1:] + behind], 1)
        self.context = replace(self.context.map(padded), position_ids=positions)
        if self.span is not None:
            self.span = torch.cat([self.span, self.span.new_full((len(self.span), more), -1)], 1)

    def join(self, other: Pictures) -> None:
        """Append the sequences of another canvas of as many slots."""
        mine, new = self.context.alike(other.context)
        self.context = mine.map(lambda *tensors: torch.cat(tensors), new)
        self.span = None if self.span is None else torch.cat([self.span, other.span])
        self.rereads |= other.rereads
        self.first |= other.first

    def overwrite(self, sequences: Int[Tensor, " M"], other: Pictures) -> bool:
        """Overwrite these sequences with those of another canvas of as many slots. Returns whether tensors have moved:
        they are overwritten in place unless it has values of another kind."""
        before = self.context
        self.context, new = before.alike(other.context)
        self.context.map(lambda mine, theirs: mine.index_copy_(0, sequences, theirs), new)
        if self.span is not None:
            self.span[sequences] = other.span
        self.rereads |= other.rereads
        return self.context is not before


def on_canvas(model: PreTrainedModel, request: Request, index: list[int], width: int) -> Context:
    """The context of the prompts `index` of a request, in rows of `width` slots. The text behind a prompt goes on at
    the position after its largest."""
    device, size = model.device, len(index)
    rows = [row for row, number in enumerate(index) if request.images[number] is not None]
    position = torch.arange(width, device=device).expand(size, -1)[..., None]
    if not rows:
        given = torch.zeros(size, width, dtype=torch.bool, device=device)
        return Context(given, embedded(model, position[..., 0] * 0), position)
    texts = [torch.tensor(request.prompts[index[row]]) for row in rows]
    arguments = joined(texts, [request.images[index[row]] for row in rows])
    recorded = record(model, moved(arguments, lambda t: t.to(device)))

    def spread(values: Tensor) -> Tensor:
        out = values.new_zeros(size, width, *values.shape[2:])
        out[rows, : values.shape[1]] = values
        return out

    context, axes = recorded.map(spread), position.repeat(1, 1, recorded.position_ids.shape[-1])
    for row, text, own in zip(rows, texts, recorded.position_ids, strict=True):
        known = own[: len(text)]
        axes[row, : len(text)] = known
        axes[row, len(text) :] = known.max() + 1 + position[row, : width - len(text)]
    return Context(context.given, context.embeds, axes, context.of_tokens, context.of_given)
