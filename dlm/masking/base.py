"""The forward process q(xt | x0): how many tokens of a noise unit are hidden, and which.

A *unit* is a set of tokens that share one noise level t: a block for block-wise patterns, a document for bidirectional
attention, a single token for the AR limit (the attention pattern says which). In a unit of n maskable tokens k are
hidden, and `count` says how k is drawn:

    exact      k = max(1, round(t n)), likelihood weight n / k      (Efficient-DLM §2; k / n is the realised t)
    bernoulli  k ~ Binomial(n, t), weight 1 / t                     (tokens are independent: MDLM, LLaDA)
    ceil       k = ceil(t n), so k is uniform on 1..n, weight n / k (the any-order form of the same bound, with the
                                                                     least variance; evaluation uses it)

Several `views` of a batch share one clean stream: (views + 1) L rows instead of 2 views L. Two are complementary, each
token hidden in one of them (Fast-dLLM v2); more are independent draws.

A scheme only decides which k tokens are hidden: `priority`. The noise level (`dlm.noise_level`) draws t, and the kernel
(`dlm.kernel`) replaces the hidden tokens.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dlm.kernel.absorb import Absorb
from dlm.kernel.base import Kernel
from dlm.noise_level.base import NoiseLevel, NoiseUnits
from dlm.noise_level.uniform import Uniform as UniformLevel
from dlm.types import Batch, Noised

SCORES = ("masked", "all")


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

    def __init__(
        self,
        count: str = "exact",
        t_min: float = 1e-3,
        t_max: float = 1.0,
        views: int = 1,
        complementary: bool = True,
        score: str = "masked",
        noise_level: NoiseLevel | None = None,
        kernel: Kernel | None = None,
    ):
        if count not in COUNTS:
            raise ValueError(f"masking.count {count!r} is unknown: choose one of {', '.join(COUNTS)}")
        if not 0 <= t_min < t_max <= 1:
            raise ValueError(f"masking.t_min {t_min} and masking.t_max {t_max} must satisfy 0 <= t_min < t_max <= 1")
        if views < 1:
            raise ValueError(f"masking.views {views} must be at least 1")
        if score not in SCORES:
            raise ValueError(f"masking.score {score!r} is unknown: choose one of {', '.join(SCORES)}")
        self.count, self.t_min, self.t_max, self.views, self.score = count, t_min, t_max, views, score
        self.complementary = complementary and views == 2
        self.noise_level, self.kernel = noise_level or UniformLevel(), kernel or Absorb()
        # A first view that hides a whole unit leaves its complement nothing to hide, and no weight makes up for that.
        # With `bernoulli` the weight 1 / (1 - t) of every token does.
        self.unbiased = self.unbiased and not (self.complementary and count != "bernoulli")

    @abstractmethod
    def priority(
        self,
        t: Float[Tensor, " M"],
        offset: Int[Tensor, " M"],
        length: Int[Tensor, " M"],
        generator: torch.Generator,
    ) -> Float[Tensor, " M"]:
        """The order in which the M maskable tokens of a batch are hidden within their unit, largest first. `t` is the
        noise level of a token's unit, `offset` and `length` are those of `Units`."""

    def __call__(self, batch: Batch, units: Units, mask_id: int, generator: torch.Generator) -> Noised:
        """Hide tokens of `batch`, in each of its views. All on the CPU, so that the step on the device never waits for
        the host."""
        maskable = batch.maskable
        unit_ids, unit = units.index[maskable].unique(return_inverse=True)
        size = torch.bincount(unit, minlength=len(unit_ids))
        noise_units = NoiseUnits(torch.zeros_like(size).scatter(0, unit, serial_documents(batch)[maskable]), size)
        hidden, weight = [], []  # of each view, over the maskable tokens
        for view in range(self.views):
            if view == 1 and self.complementary:
                is_hidden, unit_weight = ~hidden[0], complement_weight(self.count, t, k, size)
            else:
                t = self.noise_level(noise_units, self.t_min, self.t_max, generator)
                k, unit_weight = COUNTS[self.count](t, size, generator)
                priority = self.priority(t[unit], units.offset[maskable], units.length[maskable], generator)
                is_hidden = rank_within(priority, unit, size) < k[unit]
            hidden.append(is_hidden)
            weight.append(unit_weight[unit] * is_hidden)
        masked = torch.cat([torch.zeros_like(maskable).masked_scatter(maskable, h) for h in hidden], 1)
        weights = torch.cat([torch.zeros(maskable.shape).masked_scatter(maskable, w) for w in weight], 1)
        xt = self.kernel(batch.x0.repeat(1, self.views), masked, mask_id, generator)
        scored = (masked | (self.score == "all")) & batch.targets.repeat(1, self.views)
        return Noised(xt, masked, weights, scored)


def serial_documents(batch: Batch) -> Int[Tensor, "B L"]:
    """The document of every token, numbered through all rows of the batch."""
    rows, length = batch.document.shape
    return batch.document + length * torch.arange(rows)[:, None]


def complement_weight(
    count: str, t: Float[Tensor, " U"], k: Int[Tensor, " U"], size: Int[Tensor, " U"]
) -> Float[Tensor, " U"]:
    """The likelihood weight of each unit in the second of two complementary views, which hides the tokens that the
    first one shows: noise level 1 - t, or n - k tokens of n."""
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


CountAndWeight = tuple[Int[Tensor, " U"], Float[Tensor, " U"]]  # hidden tokens of a unit, their likelihood weight


def exact(t: Float[Tensor, " U"], size: Int[Tensor, " U"], generator: torch.Generator) -> CountAndWeight:
    k = (t * size).round().long().clamp_min(1)
    return k, size / k


def bernoulli(t: Float[Tensor, " U"], size: Int[Tensor, " U"], generator: torch.Generator) -> CountAndWeight:
    return torch.binomial(size.float(), t, generator=generator).long(), 1 / t


def ceil(t: Float[Tensor, " U"], size: Int[Tensor, " U"], generator: torch.Generator) -> CountAndWeight:
    k = (t * size).ceil().long().clamp_min(1)
    return k, size / k


COUNTS = {f.__name__: f for f in (exact, bernoulli, ceil)}
