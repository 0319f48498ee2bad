"""The forward process q(xt | x0): how many tokens of a noise unit are hidden, and which.

A *unit* is what shares one noise level t: a block for block-wise patterns, a document for bidirectional attention, a
single token for the AR limit (the attention pattern says which). Within a unit of n maskable tokens, `count` gives k,
the number that are hidden:

    exact      k = max(1, round(t n)), likelihood weight n / k      (Efficient-DLM §2; k / n is the t that was realised)
    bernoulli  k ~ Binomial(n, t), weight 1 / t                     (every token by itself: MDLM, LLaDA)
    ceil       k = ceil(t n), so k is uniform on 1..n, weight n / k (the any-order form of the same bound, with the
                                                                     least variance: what evaluation uses)

Several `views` of a batch share one clean stream: (views + 1) L rows instead of 2 views L. Two are complementary, each
token hidden in one of them (Fast-dLLM v2); more are independent draws.

A scheme only says which k: `priority`. Levels are stratified over the units of a batch in random order, so they carry
no trace of the block's index.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.types import Batch, Noised


@dataclass(frozen=True)
class Units:
    """The noise unit of every token: `index` numbers the units of the batch, `offset` counts from 0 within the unit,
    `length` is the unit's size L' (prompt tokens included), the scale of position-dependent schemes."""

    index: Int[Tensor, "B L"]
    offset: Int[Tensor, "B L"]
    length: Int[Tensor, "B L"]


class Masking(ABC):
    """Contract: only maskable tokens are hidden, at least one per unit with a fixed count, the same generator state
    gives the same masks, and E[weight * masked] = 1 at every maskable position where `unbiased`."""

    unbiased: bool = True

    def __init__(self, count: str = "exact", t_min: float = 1e-3, t_max: float = 1.0, views: int = 1):
        if count not in COUNTS:
            raise ValueError(f"masking.count {count!r} is unknown: choose one of {', '.join(COUNTS)}")
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"masking.t_min {t_min} and masking.t_max {t_max} must satisfy 0 <= t_min < t_max <= 1")
        if views < 1:
            raise ValueError(f"masking.views {views} must be at least 1")
        self.count, self.t_min, self.t_max, self.views = count, t_min, t_max, views
        # Where a first view hides a whole unit there is nothing left for its complement, nor a weight that could make
        # up for it. Counted one by one, tokens have the weight 1 / (1 - t).
        self.unbiased = self.unbiased and not (views == 2 and count != "bernoulli")

    @abstractmethod
    def priority(
        self,
        t: Float[Tensor, " M"],
        offset: Int[Tensor, " M"],
        length: Int[Tensor, " M"],
        generator: torch.Generator,
    ) -> Float[Tensor, " M"]:
        """The order in which the M maskable tokens of a batch are hidden within their unit, largest first."""

    def levels(self, num_units: int, generator: torch.Generator) -> Float[Tensor, " U"]:
        """Noise levels in (t_min, t_max], one stratum per unit, in random order."""
        stratum = torch.randperm(num_units, generator=generator)
        u = (stratum + 1 - torch.rand(num_units, generator=generator)) / max(num_units, 1)
        return self.t_min + (self.t_max - self.t_min) * u

    def __call__(self, batch: Batch, units: Units, mask_id: int, generator: torch.Generator) -> Noised:
        """Hide tokens of `batch`, in each of its views. All on the CPU, so that the step on the device never waits for
        the host."""
        where = batch.maskable
        present, unit = units.index[where].unique(return_inverse=True)
        size = torch.bincount(unit, minlength=len(present))
        hidden, weight = [], []
        for view in range(self.views):
            if view == 1 and self.views == 2:
                chosen, per_unit = ~hidden[0], complement(self.count, t, k, size)
            else:
                t = self.levels(len(present), generator)
                k, per_unit = COUNTS[self.count](t, size, generator)
                priority = self.priority(t[unit], units.offset[where], units.length[where], generator)
                chosen = rank_within(priority, unit, size) < k[unit]
            hidden.append(chosen)
            weight.append(per_unit[unit] * chosen)
        masked = torch.cat([torch.zeros_like(where).masked_scatter(where, h) for h in hidden], 1)
        weights = torch.cat([torch.zeros(where.shape).masked_scatter(where, w) for w in weight], 1)
        return Noised(torch.where(masked, mask_id, batch.x0.repeat(1, self.views)), masked, weights)


def complement(
    count: str, t: Float[Tensor, " U"], k: Int[Tensor, " U"], size: Int[Tensor, " U"]
) -> Float[Tensor, " U"]:
    """The likelihood weights of the second of two complementary views, which hides what the first one shows: noise
    level 1 - t, or n - k tokens of n."""
    return 1 / (1 - t).clamp_min(1e-6) if count == "bernoulli" else size / (size - k).clamp_min(1)


def rank_within(priority: Float[Tensor, " M"], unit: Int[Tensor, " M"], size: Int[Tensor, " U"]) -> Int[Tensor, " M"]:
    """The rank of every token in its unit: 0 for the largest priority."""
    order = priority.argsort(descending=True)
    order = order[unit[order].argsort(stable=True)]
    start = size.cumsum(0) - size
    rank = torch.empty_like(unit)
    rank[order] = torch.arange(len(unit)) - start[unit[order]]
    return rank


def gumbel(shape: torch.Size, generator: torch.Generator) -> Float[Tensor, " M"]:
    """Standard Gumbel noise: the largest k of log w + gumbel are k draws without replacement with weights w."""
    u = torch.rand(shape, generator=generator).clamp_min(1e-12)
    return -torch.log(-torch.log(u))


Counted = tuple[Int[Tensor, " U"], Float[Tensor, " U"]]


def exact(t: Float[Tensor, " U"], size: Int[Tensor, " U"], generator: torch.Generator) -> Counted:
    k = (t * size).round().long().clamp_min(1)
    return k, size / k


def bernoulli(t: Float[Tensor, " U"], size: Int[Tensor, " U"], generator: torch.Generator) -> Counted:
    return torch.binomial(size.float(), t, generator=generator).long(), 1 / t


def ceil(t: Float[Tensor, " U"], size: Int[Tensor, " U"], generator: torch.Generator) -> Counted:
    k = (t * size).ceil().long().clamp_min(1)
    return k, size / k


COUNTS = {f.__name__: f for f in (exact, bernoulli, ceil)}
