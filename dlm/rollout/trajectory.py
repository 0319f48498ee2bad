"""States of the model's own decoding (OPDLM): it answers the prompts of the batch, and a teacher's predictions at a
random step of each block's denoising are the targets."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.request import Request
from dlm.masking.base import serial_documents
from dlm.model.denoiser import Denoiser
from dlm.model.eos import eos_ids
from dlm.rollout.base import Rollout
from dlm.types import Batch


class Trajectory(Rollout):
    """The model's own text replaces the maskable end of every document: it continues the prompt, or the first half of a
    document without a prompt, and EOS fills the rest. In every block one of the forwards that committed its tokens is
    drawn; the tokens of that forward and of later ones are masked.

    Generated text has no correct targets: combine it with `auxiliary=distill` and `loss.scale=0`.
    """

    def __init__(self, decoder: Decoder, batch_size: int):
        self.decoder, self.batch_size = decoder, batch_size

    def bind(self, parent):
        self.eos_id, self.ends = parent.tokenizer.eos_token_id, eos_ids(parent.model, parent.tokenizer)

    def __call__(self, denoiser, batch, noised, generator):
        x0, step, fill = batch.x0.clone(), torch.zeros_like(batch.x0), torch.zeros_like(batch.maskable)
        places, prompts, images = [], [], []
        for row, columns in documents(batch.document):
            begin = int(columns[0]) + first_generated(batch.maskable[row, columns])
            if begin <= columns[-1]:
                places.append((row, begin, int(columns[-1]) + 1))
                prompts.append(batch.x0[row, columns[0] : begin].tolist())
                pictured = batch.images[row] if batch.images else {}
                images.append(pictured.get(int(batch.document[row, columns[0]])))
        for size in sorted({end - begin for _, begin, end in places}):
            chosen = [n for n, (_, begin, end) in enumerate(places) if end - begin == size]
            given = {"prompts": [prompts[n] for n in chosen], "images": [images[n] for n in chosen]}
            request = Request(max_new_tokens=size, eos_ids=self.ends, batch_size=self.batch_size, replay=False, **given)
            with torch.compiler.set_stance("force_eager"):  # its shapes would use up the versions of compiled layers
                made = self.decoder.generate(denoiser, request)
            for n, generation in zip(chosen, made, strict=True):
                row, begin, end = places[n]
                tail = size - len(generation.tokens)
                x0[row, begin:end] = torch.tensor(generation.tokens + [self.eos_id] * tail)
                step[row, begin:end] = torch.tensor(generation.step + generation.step[-1:] * tail)
                fill[row, end - tail : end] = True
        batch = replace(batch, x0=x0, maskable=step > 0, fill=None if batch.fill is None else fill)
        masked = hidden_at_random_step(step, block_of(denoiser, batch), generator) & batch.maskable
        xt = torch.where(masked, denoiser.mask_id, x0)
        return batch, replace(noised, xt=xt, masked=masked, weight=masked.float(), scored=masked & batch.targets)


def documents(document: Int[Tensor, "B L"]) -> Iterator[tuple[int, Int[Tensor, " D"]]]:
    """The row of every document, and its columns."""
    for row, numbers in enumerate(document):
        for number in numbers[numbers >= 0].unique():
            yield row, (numbers == number).nonzero()[:, 0]


def first_generated(maskable: Bool[Tensor, " D"]) -> int:
    """The offset in a document at which the model's own text begins, at least 1: a token must remain as the prompt."""
    prompt = int((~maskable).int().cumprod(0).sum())
    return max(prompt if prompt else len(maskable) // 2, 1)


def block_of(denoiser: Denoiser, batch: Batch) -> Int[Tensor, "B L"]:
    """The block of every token, numbered through the batch."""
    length = batch.x0.shape[1]
    return serial_documents(batch) * length + denoiser.pattern.grid(batch) // denoiser.pattern.block_size


def hidden_at_random_step(
    step: Int[Tensor, "B L"], block: Int[Tensor, "B L"], generator: torch.Generator
) -> Bool[Tensor, "B L"]:
    """The tokens still hidden at a random step, drawn for each block from those that committed its tokens. `step` is
    the step that committed a token, 0 for tokens that are not generated."""
    _, unit = block.unique(return_inverse=True)
    num = int(unit.max()) + 1
    noise = torch.rand(step.shape, generator=generator).masked_fill(step == 0, -1.0).flatten()
    # The step of a block is that of its token with the largest random number.
    best = torch.full((num,), -2.0).scatter_reduce(0, unit.flatten(), noise, "amax")
    is_best = noise == best[unit.flatten()]
    drawn_step = torch.zeros(num, dtype=step.dtype).scatter_reduce(
        0, unit.flatten(), torch.where(is_best, step.flatten(), 0), "amax"
    )
    return step >= drawn_step[unit]
