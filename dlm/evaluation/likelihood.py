"""The likelihood of held-out text: the parent's negative log-likelihood, and the dLM's upper bound on its own."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from dlm.conversion.prepare import prepare
from dlm.data.packing import Document, collate, pack
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.model.denoiser import Denoiser
from dlm.types import Batch, generator


@dataclass(frozen=True)
class Likelihood:
    """The negative log-likelihood in `nats` per token, with its standard error over rows, and in bits per byte of text.
    It is exact for AR (NLL) and an upper bound for a dLM (NELBO)."""

    nats: float
    standard_error: float
    bits_per_byte: float
    tokens: int


def windows(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int, limit: int) -> tuple[list[Batch], int]:
    """At most `limit` full rows, cut from each text in turn, and the number of bytes of their scored tokens.
    `ValueError` if no text has `length` tokens.

    The first token of a row is context for every model, because the AR parent cannot score it.
    """
    rows, num_bytes = [], 0
    for text in texts:
        ids = tokenizer(text, add_special_tokens=False)["input_ids"]
        for start in range(0, len(ids) - length + 1, length):
            if len(rows) == limit:
                return rows, num_bytes
            window = ids[start : start + length]
            rows.append(pack([Document(window, [False] + [True] * (length - 1))], length, 0))
            num_bytes += len(tokenizer.decode(window[1:]).encode())
    if not rows:
        raise ValueError(f"no held-out text has {length} tokens: lower evaluation.length")
    return rows, num_bytes


@torch.no_grad()
def draws(
    denoiser: Denoiser, rows: list[Batch], samples: int, batch_size: int, seed: int = 0
) -> Iterator[tuple[Int[Tensor, " N"], Float[Tensor, " N"], Float[Tensor, " N"]]]:
    """For every batch of every draw of the noise: the indices of the masked tokens (flat in the [R L] of all rows),
    their negative log-likelihoods in nats, and their weights in the bound, averaged over the draws.

    Masking is uniform, with `samples` draws per row. With block size 1 (AR) every token is always masked, so that one
    draw is exact.
    """
    masking = Uniform(count="ceil", t_min=0.0)
    samples = 1 if denoiser.pattern.block_size == 1 else samples
    training, length = denoiser.training, len(rows[0].x0)
    denoiser.eval()
    for sample, begin in itertools.product(range(samples), range(0, len(rows), batch_size)):
        batch = collate(rows[begin : begin + batch_size])
        prepared = prepare(denoiser, masking, batch, generator(seed, sample, begin)).to(denoiser.model.device)
        nll = denoiser.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens).nll
        weight = prepared.scored.weight.double().cpu() / samples
        yield begin * length + prepared.scored.index.cpu(), nll.double().cpu(), weight
    denoiser.train(training)


def likelihood(
    denoiser: Denoiser, rows: list[Batch], num_bytes: int, samples: int, batch_size: int, seed: int = 0
) -> Likelihood:
    """The bound over all rows, from `samples` draws of the noise."""
    per_row = torch.zeros(len(rows), dtype=torch.float64)
    for index, nll, weight in draws(denoiser, rows, samples, batch_size, seed):
        per_row.index_add_(0, index // len(rows[0].x0), nll * weight)
    tokens = sum(int(row.maskable.sum()) for row in rows)
    mean = per_row.sum().item() / tokens
    standard_error = per_row.std().item() / math.sqrt(len(rows)) * len(rows) / tokens if len(rows) > 1 else math.nan
    return Likelihood(mean, standard_error, per_row.sum().item() / num_bytes / math.log(2), tokens)
