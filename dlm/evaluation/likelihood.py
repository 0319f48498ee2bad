"""How well a model predicts held-out text: the parent's negative log-likelihood, the dLM's bound on it."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from dlm.data.packing import Document, collate, pack
from dlm.denoiser import Denoiser
from dlm.loss.nelbo import Nelbo
from dlm.masking.uniform import Uniform
from dlm.prepare import prepare
from dlm.types import Batch, generator


@dataclass(frozen=True)
class Likelihood:
    """`nats` per token with its standard error over rows, and the same as bits per byte of text. For a dLM this is an
    upper bound (NELBO) on what it is for the AR parent (NLL)."""

    nats: float
    standard_error: float
    bits_per_byte: float
    tokens: int


def windows(texts: list[str], tokenizer: PreTrainedTokenizerBase, length: int, limit: int) -> tuple[list[Batch], int]:
    """At most `limit` full rows cut from the beginning of each text in turn, and the bytes they score.

    The first token of a row is context for every model: the AR parent cannot score it.
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
def likelihood(
    denoiser: Denoiser, rows: list[Batch], num_bytes: int, samples: int, batch_size: int, seed: int = 0
) -> Likelihood:
    """The bound with uniform masking, `samples` draws per row; exact, from one draw, where every token is always
    masked (AR, block size 1)."""
    masking = Uniform(count="ceil", t_min=0.0)
    samples = 1 if denoiser.pattern.block_size == 1 else samples
    training = denoiser.training
    denoiser.eval()
    per_row = torch.zeros(len(rows), dtype=torch.float64)
    for sample in range(samples):
        for begin in range(0, len(rows), batch_size):
            batch = collate(rows[begin : begin + batch_size])
            prepared = prepare(denoiser, masking, batch, generator(seed, sample, begin)).to(denoiser.model.device)
            nll = denoiser.loss(prepared.inputs, prepared.scored, Nelbo(), prepared.num_tokens).nll
            row = prepared.scored.index.cpu() // batch.x0.shape[1]
            per_row.index_add_(0, begin + row, (nll * prepared.scored.weight).double().cpu())
    denoiser.train(training)
    per_row /= samples
    tokens = sum(int(row.maskable.sum()) for row in rows)
    mean = per_row.sum().item() / tokens
    spread = per_row.std().item() / math.sqrt(len(rows)) * len(rows) / tokens if len(rows) > 1 else math.nan
    return Likelihood(mean, spread, per_row.sum().item() / num_bytes / math.log(2), tokens)
