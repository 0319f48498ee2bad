"""A corrupted batch → the input of the network. In training the only place that knows the token shift.

Without the shift, the hidden state of position i scores token i. With it, position i-1 does. The first token of a block
is then scored from the previous position of the clean stream if there is one (as in decoding, from the cache), else
from the previous position of the same stream. Position 0 has nothing to its left: with the shift it is neither masked
nor scored.

    B rows        L tokens of a row        S columns that the network reads        N scored tokens
"""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import Self

import torch

from dlm.attention.base import AttentionPattern
from dlm.model.pictured import pictured, spans
from dlm.model.positions import require_within
from dlm.types import Batch, ModelInputs, Noised, Rows, Scored


class Layout:
    """Lays out a batch for a model that reads rows of at most `positions` tokens (None: of any length), under an
    attention pattern. `compiles`: something is compiled for each shape of a forward, so there should be few. Runs of
    tokens with `span_ids` (images) see each other both ways. It holds no weights; a `Denoiser` is one with its
    model."""

    def __init__(
        self,
        pattern: AttentionPattern,
        mask_id: int,
        token_shift: bool,
        positions: int | None,
        compiles: bool,
        span_ids: tuple[int, ...] = (),
    ):
        self.pattern, self.mask_id, self.token_shift = pattern, mask_id, token_shift
        self.positions, self.compiles, self.span_ids = positions, compiles, span_ids

    def without_model(self) -> Layout:
        """This layout alone, for another process."""
        return Layout(self.pattern, self.mask_id, self.token_shift, self.positions, self.compiles, self.span_ids)

    def at(self, block_size: int) -> Self:
        """A view with another block size."""
        view = copy.copy(self)
        view.pattern = self.pattern.at(block_size)
        return view

    def scorable(self, batch: Batch) -> Batch:
        """The batch, in which tokens that no hidden state scores are not maskable."""
        if not self.token_shift:
            return batch
        return replace(batch, maskable=batch.maskable & (batch.position > 0))

    def inputs(self, batch: Batch, noised: Noised) -> tuple[ModelInputs, Scored]:
        """Lay out the streams, [noisy views ; clean] or the one that the pattern has, and find the hidden state that
        scores each token of the loss. Raises `ValueError` for rows that are longer than the model's positions."""
        require_within(self.positions, batch.x0.shape[1], f"a row of {batch.x0.shape[1]} tokens")
        streams = [noised.xt] * self.pattern.noisy_stream + [batch.x0] * self.pattern.clean_stream
        ids, length, width = torch.cat(streams, 1), batch.x0.shape[1], noised.xt.shape[1]
        copies, views = ids.shape[1] // length, width // length
        column = torch.arange(ids.shape[1]).expand_as(ids)
        noisy_end = width if self.pattern.noisy_stream else 0
        grid = self.pattern.grid(batch)
        rows = Rows(
            column >= noisy_end,
            batch.document.repeat(1, copies),
            grid.repeat(1, copies),
            column // length if views > 1 else None,
        )
        index = noised.in_loss.flatten().nonzero()[:, 0]
        row, column = index // width, index % width
        token = row * length + column % length
        if not self.pattern.noisy_stream:
            column = column % length  # all views are the clean stream
        if self.token_shift:
            first_of_block = grid.flatten()[token] % self.pattern.block_size == 0
            both = self.pattern.noisy_stream and self.pattern.clean_stream
            column = torch.where(first_of_block & both, noisy_end + column % length, column) - 1
        scored = Scored(batch.x0.flatten()[token], noised.weight.flatten()[index], token)
        position_ids = batch.position.repeat(1, copies)
        inputs = ModelInputs(ids, position_ids, rows, row * ids.shape[1] + column, self.pattern)
        return self.with_images(inputs, batch, copies) if any(batch.images or ()) else inputs, scored

    def with_images(self, inputs: ModelInputs, batch: Batch, copies: int) -> ModelInputs:
        """The inputs, `copies` streams of the batch, with what the network reads of its images."""
        arguments, source = pictured(batch)
        rows = inputs.rows
        if self.span_ids:
            in_span = torch.isin(batch.x0, torch.tensor(self.span_ids)) & (source >= 0)
            rows = replace(rows, span=spans(self.pattern, batch, in_span).repeat(1, copies))
        return replace(inputs, rows=rows, source=source.repeat(1, copies), pictured=arguments)
