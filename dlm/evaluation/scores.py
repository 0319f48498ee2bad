"""How probable a continuation is: exactly, as decoding from left to right would write it, or as a bound.

    L tokens of a row        K noisy versions of a row        N scored tokens

Exact: token i is scored with the earlier tokens of the continuation visible and all later ones hidden, as when one
token is committed per step from left to right; masks fill the last block, as in decoding. AR scores all tokens at once.
With a clean stream in which a block sees no other noisy block, one noisy version scores the j-th token of every block,
so that a text of any length takes no more versions than a block has tokens. Otherwise each token takes one.

The bound (NELBO) is that of training: the mean over draws of uniform noise.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn.functional import cross_entropy

from dlm.attention.base import AttentionPattern, NoisePer
from dlm.conversion.prepare import corrupt
from dlm.data.packing import Document, collate, pack
from dlm.decoding.engine.lengths import whole_blocks
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.model.readout import chunk_bytes
from dlm.model.trim import trim
from dlm.runs.digest import digest
from dlm.types import Batch, Noised, Rows, generator

Pair = tuple[Sequence[int], Sequence[int]]
MAX_TOKENS = 16_384  # of the noisy versions of one row that share a forward


@dataclass(frozen=True)
class Score:
    """The log-probability of a continuation, in nats, or its lower bound. `is_greedy`: whether decoding one token at a
    time from left to right, each the most probable one, writes it; False for a bound, which has no order. `nfe` counts
    the noisy versions that were read, each of which is a forward where they share none."""

    log_p: float
    is_greedy: bool
    nfe: int


@dataclass(frozen=True)
class Reading:
    """Noisy versions of the row of one pair, and the weight of the log-probability of every token in each; 0: not
    scored."""

    pair: int
    row: Batch
    xt: Int[Tensor, "K L"]
    weight: Float[Tensor, "K L"]

    def chunks(self, size: int) -> Iterator[Reading]:
        """The same in parts of at most `size` versions."""
        for xt, weight in zip(self.xt.split(size), self.weight.split(size), strict=True):
            yield Reading(self.pair, self.row, xt, weight)


@torch.no_grad()
def scores(
    denoiser: Denoiser, pairs: Sequence[Pair], batch_size: int = 32, samples: int | None = None, seed: int = 0
) -> list[Score]:
    """log p(continuation | context) of every pair of token ids, in order, computed about `batch_size` noisy rows at a
    time. With `samples`, its bound from so many draws of the noise, which depend on the pair and `seed` alone; where
    blocks have one token, the bound is exact and needs no draws. Raises `ValueError` for a pair that this model cannot
    score."""
    check(denoiser, pairs)
    exact = samples is None or denoiser.pattern.block_size == 1
    readings = [
        reveal(denoiser, n, *pair) if exact else draws(denoiser, n, *pair, samples, seed)
        for n, pair in enumerate(pairs)
    ]
    log_p, greedy = torch.zeros(len(pairs), dtype=torch.float64), torch.ones(len(pairs), dtype=torch.bool)
    training = denoiser.training
    denoiser.eval()
    for batch in batches(denoiser, readings, batch_size):
        of, nll, is_best = read(denoiser, batch)
        log_p.index_add_(0, of, -nll)
        greedy[of[~is_best]] = False
    denoiser.train(training)
    values = zip(log_p.tolist(), greedy.tolist(), readings, strict=True)
    return [Score(value, exact and best, len(reading.xt)) for value, best, reading in values]


def check(denoiser: Denoiser, pairs: Sequence[Pair]) -> None:
    """Raises `ValueError` for a pair without a continuation, one with the mask token, or one whose first token the
    token shift cannot score."""
    for number, (context, continuation) in enumerate(pairs, 1):
        if not continuation:
            raise ValueError(f"pair {number} has an empty continuation: give at least one token to score")
        if denoiser.token_shift and not context:
            raise ValueError(f"pair {number} has an empty context, and the token shift scores from it: begin with BOS")
        if denoiser.mask_id in (*context, *continuation):
            raise ValueError(f"pair {number} holds the mask token (id {denoiser.mask_id}): it stands for no text")


def reveal(denoiser: Denoiser, pair: int, context: Sequence[int], continuation: Sequence[int]) -> Reading:
    """The noisy versions whose scored tokens give log p(continuation | context), revealed from left to right."""
    pattern, ids = denoiser.pattern, [*context, *continuation]
    size, to_grid = pattern.block_size, pattern.to_grid(len(context))
    length = whole_blocks(len(ids) + to_grid, size) - to_grid
    column = torch.arange(length)
    continued, place = column >= len(context), (column + to_grid) % size
    padded = Document(ids + [denoiser.mask_id] * (length - len(ids)), continued.tolist())
    scorable = continued & (column < len(ids))
    if pattern.noise_per is NoisePer.TOKEN:
        hidden, scored = continued[None], scorable[None]
    elif has_blind_blocks(pattern):
        offset = place[scorable].unique()[:, None]
        hidden, scored = continued & (place >= offset), scorable & (place == offset)
    else:
        token = column[scorable][:, None]
        hidden, scored = column >= token, column == token
    row = pack([padded], length, 0)
    return Reading(pair, row, torch.where(hidden & pattern.noisy_stream, denoiser.mask_id, row.x0), scored.double())


@cache
def has_blind_blocks(pattern: AttentionPattern) -> bool:
    """Whether a noisy row sees no other noisy block than its own, and the clean ones instead."""
    position = torch.arange(3 * pattern.block_size)
    rows = Rows(torch.zeros_like(position, dtype=torch.bool), torch.zeros_like(position), position)
    q, k = rows[:, None], rows[None]
    sees_another = pattern.visible(q, k) & (pattern.block(q) != pattern.block(k))
    return pattern.noisy_stream and pattern.clean_stream and not bool(sees_another.any())


def draws(
    denoiser: Denoiser, pair: int, context: Sequence[int], continuation: Sequence[int], samples: int, seed: int
) -> Reading:
    """The noisy versions of as many draws. Masking is uniform, as in `dlm.evaluation.likelihood`."""
    ids, given = [*context, *continuation], len(context)
    row = pack([Document(ids, [n >= given for n in range(len(ids))])], len(ids), 0)
    batch, masking = denoiser.scorable(collate([row])), Uniform(count="ceil", t_min=0.0)
    content = int(digest({"given": given, "ids": ids}, digits=14), 16)  # 56 bits, a seed
    drawn = [corrupt(denoiser, masking, batch, generator(seed, sample, content)) for sample in range(samples)]
    xt, masked, weight = (torch.cat([getattr(d, name) for d in drawn]) for name in ("xt", "masked", "weight"))
    return Reading(pair, row, xt, torch.where(masked, weight.double(), 0) / samples)


def batches(denoiser: Denoiser, readings: list[Reading], batch_size: int) -> Iterator[list[Reading]]:
    """Readings of similar shape, of about `batch_size` noisy rows together. Those of one pair are parted where they
    share no clean stream, or are too many."""
    views = denoiser.pattern.noisy_stream and denoiser.pattern.clean_stream
    parts: list[Reading] = []
    for reading in readings:
        together = min(batch_size, max(MAX_TOKENS // reading.xt.shape[1], 1))
        parts += reading.chunks(together if views else 1)
    batch: list[Reading] = []
    for part in sorted(parts, key=lambda part: part.xt.shape):
        if batch and (len(batch) + 1) * len(part.xt) > batch_size:
            yield batch
            batch = []
        batch.append(part)
    if batch:
        yield batch


def read(
    denoiser: Denoiser, readings: list[Reading]
) -> tuple[Int[Tensor, " N"], Float[Tensor, " N"], Bool[Tensor, " N"]]:
    """One forward. Of every scored token: its pair, its weighted negative log-likelihood in nats, and whether it is the
    most probable one. Shorter rows are padded."""
    length, views = (max(reading.xt.shape[dim] for reading in readings) for dim in (1, 0))
    batch = collate([widened(reading.row, length) for reading in readings])
    xt = torch.zeros(len(readings), views, length, dtype=torch.long)
    weight = torch.zeros(len(readings), views, length, dtype=torch.float64)
    for n, reading in enumerate(readings):
        rows, columns = reading.xt.shape
        xt[n, :rows, :columns], weight[n, :rows, :columns] = reading.xt, reading.weight
    inputs, scored = denoiser.inputs(batch, Noised(xt.flatten(1), (weight > 0).flatten(1), weight.flatten(1)))
    device = denoiser.model.device
    inputs = trim(inputs, few_shapes=denoiser.compiles).settled().to(device)
    target, chunk = scored.target.to(device), max(chunk_bytes(device) // denoiser.row_bytes, 1)
    nll, best = [], []
    for hidden, wanted in zip(denoiser.read(inputs).split(chunk), target.split(chunk), strict=True):
        logits = denoiser.logits(hidden)
        nll.append(cross_entropy(logits, wanted, reduction="none").double().cpu())
        best.append((logits.argmax(-1) == wanted).cpu())
    of = torch.tensor([reading.pair for reading in readings])[scored.index // length]
    return of, torch.cat(nll) * scored.weight, torch.cat(best)


def widened(row: Batch, length: int) -> Batch:
    """A row [L] padded to a length."""
    more = length - len(row.x0)
    fill = {"x0": 0, "maskable": False, "document": -1, "position": 0}
    padded = {name: torch.nn.functional.pad(getattr(row, name), (0, more), value=value) for name, value in fill.items()}
    return Batch(**padded)
