"""Loss by position, in the block and in the sequence, of a dLM and of its parent (Efficient-DLM, Figures 6c and 12)."""

from __future__ import annotations

import math

import torch
from jaxtyping import Float, Int
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
        """For `dlm` and `ar`, the result of `by_position` for positions in the `sequence` and in the `block` (position
        modulo the dLM's block size)."""
        tokenizer, size = subject.converted.tokenizer, subject.dlm.pattern.block_size
        rows, _ = windows(list(prose.chapters("test")), tokenizer, self.length, self.rows)
        losses = {}
        for name in ("dlm", "ar"):
            weighted, plain, count = self.losses(getattr(subject, name), rows)
            maskable = torch.stack([row.maskable for row in rows]).double()
            sequence = torch.arange(self.length)
            losses[name] = {
                "sequence": by_position(weighted, plain, count, maskable, sequence),
                "block": by_position(weighted, plain, count, maskable, sequence % size),
            }
        return {"block_size": size, **losses}

    def losses(
        self, denoiser: Denoiser, rows: list[Batch]
    ) -> tuple[Float[Tensor, "R L"], Float[Tensor, "R L"], Float[Tensor, "R L"]]:
        """Per row and position: the term of the bound, averaged over the draws; the sum of the negative log-likelihoods
        in the draws that masked the token; the number of these draws. All in float64, losses in nats."""
        weighted, plain, count = (torch.zeros(len(rows) * self.length, dtype=torch.float64) for _ in range(3))
        for index, nll, weight in draws(denoiser, rows, self.samples, self.batch_size):
            weighted.index_add_(0, index, nll * weight)
            plain.index_add_(0, index, nll)
            count.index_add_(0, index, torch.ones_like(nll))
        return tuple(values.view(len(rows), self.length) for values in (weighted, plain, count))


def by_position(
    weighted: Float[Tensor, "R L"],
    plain: Float[Tensor, "R L"],
    count: Float[Tensor, "R L"],
    maskable: Float[Tensor, "R L"],
    group: Int[Tensor, " L"],
) -> dict[str, list]:
    """For each group of columns, the means over its scorable tokens: `nelbo`, the bound in nats per token, with its
    `standard_error` over `n` rows, and `nll`, the unweighted loss of a masked token. `weighted`, `plain`
    and `count` come from `losses`; `maskable` is 1 for scorable tokens, and `group` is the group of each column."""
    table: dict[str, list] = {name: [] for name in ("position", "nelbo", "standard_error", "nll", "n")}
    for position in group.unique().tolist():
        columns = group == position
        num_scorable = maskable[:, columns].sum(1)
        rows = num_scorable > 0
        if not rows.any():
            continue
        per_row = weighted[:, columns].sum(1)[rows] / num_scorable[rows]
        standard_error = per_row.std().item() / math.sqrt(len(per_row)) if len(per_row) > 1 else None
        num_masked = count[:, columns].sum().item()
        table["position"].append(position)
        table["nelbo"].append(per_row.mean().item())
        table["standard_error"].append(standard_error)
        table["nll"].append(plain[:, columns].sum().item() / num_masked if num_masked else None)
        table["n"].append(len(per_row))
    return table
