"""States of the model's own decoding (OPDLM): it answers the prompts of the batch, and is trained on a random moment of
each block's denoising, where a teacher says what should come next."""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.request import Request
from dlm.masking.base import serial_documents
from dlm.model.eos import eos_ids
from dlm.rollout.base import Rollout


class Trajectory(Rollout):
    """The maskable end of every document is replaced by what the model generates after its beginning: after the prompt,
    or after the first half of a document without one. EOS fills what is left. In every block a forward is drawn of
    those that committed its tokens; the tokens of that forward and of later ones are masked.

    There is no target in such text: use it with `auxiliary=distill` and `loss.scale=0`.
    """

    def __init__(self, decoder: Decoder, batch_size: int):
        self.decoder, self.batch_size = decoder, batch_size

    def bind(self, parent):
        self.eos_id, self.ends = parent.tokenizer.eos_token_id, eos_ids(parent.model, parent.tokenizer)

    def __call__(self, denoiser, batch, noised, generator):
        x0, step = batch.x0.clone(), torch.zeros_like(batch.x0)
        places, prompts = [], []
        for row, columns in documents(batch.document):
            free = batch.maskable[row, columns]
            begin = int(columns[0]) + first_generated(free)
            if begin <= columns[-1]:
                places.append((row, begin, int(columns[-1]) + 1))
                prompts.append(batch.x0[row, columns[0] : begin].tolist())
        for size in sorted({end - begin for _, begin, end in places}):
            chosen = [n for n, (_, begin, end) in enumerate(places) if end - begin == size]
            request = Request([prompts[n] for n in chosen], size, self.ends, self.batch_size)
            with torch.compiler.set_stance("force_eager"):  # its shapes would use up the versions of compiled layers
                made = self.decoder.generate(denoiser, request)
            for n, generation in zip(chosen, made, strict=True):
                row, begin, end = places[n]
                tail = size - len(generation.tokens)
                x0[row, begin:end] = torch.tensor(generation.tokens + [self.eos_id] * tail)
                step[row, begin:end] = torch.tensor(generation.step + generation.step[-1:] * tail)
        batch = replace(batch, x0=x0, maskable=step > 0)
        masked = hidden_now(step, block_of(denoiser, batch), generator) & batch.maskable
        xt = torch.where(masked, denoiser.mask_id, x0)
        return batch, replace(noised, xt=xt, masked=masked, weight=masked.float(), scored=None)


def documents(document: Int[Tensor, "B L"]):
    """The row and the columns of every document."""
    for row, numbers in enumerate(document):
        for number in numbers[numbers >= 0].unique():
            yield row, (numbers == number).nonzero()[:, 0]


def first_generated(maskable: torch.Tensor) -> int:
    """The offset in a document at which the model's own text begins; at least one token stays as a prompt."""
    prompt = int((~maskable).int().cumprod(0).sum())
    return max(prompt if prompt else len(maskable) // 2, 1)


def block_of(denoiser, batch) -> Int[Tensor, "B L"]:
    """The block of every token, numbered through the batch."""
    length = batch.x0.shape[1]
    return serial_documents(batch) * length + batch.position // denoiser.pattern.block_size


def hidden_now(step: Int[Tensor, "B L"], block: Int[Tensor, "B L"], generator: torch.Generator):
    """Which tokens are hidden at a forward drawn for each block from those that committed its tokens."""
    _, unit = block.unique(return_inverse=True)
    num = int(unit.max()) + 1
    noise = torch.rand(step.shape, generator=generator).masked_fill(step == 0, -1.0).flatten()
    # The token that draws the largest number says which forward it is.
    best = torch.full((num,), -2.0).scatter_reduce(0, unit.flatten(), noise, "amax")
    is_best = noise == best[unit.flatten()]
    now = torch.zeros(num, dtype=step.dtype).scatter_reduce(
        0, unit.flatten(), torch.where(is_best, step.flatten(), 0), "amax"
    )
    return step >= now[unit]
