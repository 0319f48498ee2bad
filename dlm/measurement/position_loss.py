"""Loss by position, in the block and in the sequence, of a dLM and of its parent (Efficient-DLM, Figures 6c and 12)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float
from torch import Tensor

from dlm.data import prose
from dlm.evaluation.likelihood import draws, windows
from dlm.measurement.base import Measurement
from dlm.model.denoiser import Denoiser
from dlm.types import Batch


class PositionLoss(Measurement):
    """On `rows` rows of held-out prose of `length` tokens, under uniform masking, `samples` draws per row."""

    def __init__(self, rows: int, length: int, samples: int, batch_size: int):
        if min(rows, length, samples, batch_size) < 1:
            raise ValueError(
                f"measurement.rows {rows}, length {length}, samples {samples} and batch_size {batch_size} must be at "
                "least 1"
            )
        self.rows, self.length, self.samples, self.batch_size = rows, length, samples, batch_size

    def __call__(self, subject):
        """For `dlm` and `ar`, by position in the `sequence` and (position mod the dLM's block size) in the `block`: see
        `by_position`."""
        tokenizer, size = subject.converted.tokenizer, subject.dlm.pattern.block_size
        rows, _ = windows(list(prose.chapters("test")), tokenizer, self.length, self.rows)
        found = {}
        for name in ("dlm", "ar"):
            weighted, plain, count = self.losses(getattr(subject, name), rows)
            maskable = torch.stack([row.maskable for row in rows]).double()
            sequence = torch.arange(self.length)
            found[name] = {
                "sequence": by_position(weighted, plain, count, maskable, sequence),
                "block": by_position(weighted, plain, count, maskable, sequence % size),
            }
        return {"block_size": size, **found}

    def losses(
        self, denoiser: Denoiser, rows: list[Batch]
    ) -> tuple[Float[Tensor, "R L"], Float[Tensor, "R L"], Float[Tensor, "R L"]]:
        """Per row and position: the terms of the bound, averaged over the draws; the sum of the negative
        log-likelihoods of the masked tokens; how often the token was masked."""
        weighted, plain, count = (torch.zeros(len(rows) * self.length, dtype=torch.float64) for _ in range(3))
        for where, nll, weight in draws(denoiser, rows, self.samples, self.batch_size):
            weighted.index_add_(0, where, nll * weight)
            plain.index_add_(0, where, nll)
            count.index_add_(0, where, torch.ones_like(nll))
        return tuple(values.view(len(rows), self.length) for values in (weighted, plain, count))


def by_position(
    weighted: Float[Tensor, "R L"],
    plain: Float[Tensor, "R L"],
    count: Float[Tensor, "R L"],
    maskable: Float[Tensor, "R L"],
    group: Tensor,
) -> dict[str, list]:
    """Means over the tokens of each group of columns that can be scored: `nelbo`, the bound in nats per token, with its
    `standard_error` over the `n` rows, and `nll`, the loss of a masked token as it is, whatever the noise level."""
    found: dict[str, list] = {name: [] for name in ("position", "nelbo", "standard_error", "nll", "n")}
    for position in group.unique().tolist():
        columns = group == position
        scored = maskable[:, columns].sum(1)
        rows = scored > 0
        if not rows.any():
            continue
        per_row = weighted[:, columns].sum(1)[rows] / scored[rows]
        spread = per_row.std().item() / math.sqrt(len(per_row)) if len(per_row) > 1 else None
        masked = count[:, columns].sum().item()
        found["position"].append(position)
        found["nelbo"].append(per_row.mean().item())
        found["standard_error"].append(spread)
        found["nll"].append(plain[:, columns].sum().item() / masked if masked else None)
        found["n"].append(len(per_row))
    return found
