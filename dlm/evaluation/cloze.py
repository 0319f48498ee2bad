"""Multiple choice by likelihood, on cloze items made of held-out prose: which of four continuations is the real one?"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from dlm.attention.base import NoisePer
from dlm.data.packing import Document, collate, pack
from dlm.denoiser import Denoiser
from dlm.trim import trim
from dlm.types import Batch, Noised

OPTIONS, CONTEXT_TOKENS, OPTION_TOKENS = 4, 40, 8


@dataclass(frozen=True)
class Item:
    """Token ids of a context and of its options; `answer` is the index of the real continuation."""

    context: list[int]
    options: list[list[int]]
    answer: int


def items(texts: list[str], tokenizer: PreTrainedTokenizerBase, num: int, seed: int = 0) -> list[Item]:
    """`num` items; the wrong options are continuations from elsewhere in the same texts."""
    rng = random.Random(seed)
    span = CONTEXT_TOKENS + OPTION_TOKENS
    encoded = [ids for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if len(ids) > 2 * span]
    if not encoded:
        raise ValueError(f"no held-out text has {2 * span} tokens for the cloze items")

    def cut() -> list[int]:
        ids = rng.choice(encoded)
        start = rng.randrange(len(ids) - span)
        return ids[start : start + span]

    made = []
    for _ in range(num):
        window = cut()
        options = [window[CONTEXT_TOKENS:]] + [cut()[CONTEXT_TOKENS:] for _ in range(OPTIONS - 1)]
        order = rng.sample(range(OPTIONS), OPTIONS)
        made.append(Item(window[:CONTEXT_TOKENS], [options[i] for i in order], order.index(0)))
    return made


def reveal(denoiser: Denoiser, context: list[int], option: list[int], eos_id: int) -> list[tuple[Batch, Noised]]:
    """The noisy rows whose masked tokens give log p(option | context), revealed from left to right.

    Token i of the option is scored with the option's earlier tokens shown and everything after hidden, which is how the
    model would have to decode it in order; the blocks are filled up with masks as in decoding. AR scores all at once.
    """
    ids = context + option
    size = denoiser.pattern.block_size
    total = -(-len(ids) // size) * size
    row = pack([Document(ids + [eos_id] * (total - len(ids)), [True] * total)], total, eos_id)
    batch = collate([row])
    if denoiser.pattern.noise_per is NoisePer.TOKEN:
        steps = [range(len(context), len(ids))]
    else:
        steps = [range(i, i + 1) for i in range(len(context), len(ids))]
    made = []
    for step in steps:
        hidden = torch.zeros(1, total, dtype=torch.bool)
        hidden[:, step.start :] = denoiser.pattern.noisy_stream
        scored = torch.zeros_like(hidden)
        scored[:, step] = True
        made.append((batch, Noised(torch.where(hidden, denoiser.mask_id, batch.x0), scored, scored.float())))
    return made


@torch.no_grad()
def answers(denoiser: Denoiser, cloze: list[Item], eos_id: int, batch_size: int) -> list[int]:
    """The index of the likeliest option of every item."""
    rows, owner = [], []
    for i, item in enumerate(cloze):
        for j, option in enumerate(item.options):
            made = reveal(denoiser, item.context, option, eos_id)
            rows += made
            owner += [i * OPTIONS + j] * len(made)
    training = denoiser.training
    denoiser.eval()
    total = torch.zeros(len(cloze) * OPTIONS, dtype=torch.float64)
    for begin in range(0, len(rows), batch_size):
        chunk = rows[begin : begin + batch_size]
        batch = Batch(
            *(torch.cat([getattr(b, n) for b, _ in chunk]) for n in ("x0", "maskable", "document", "position"))
        )
        noised = Noised(*(torch.cat([getattr(x, n) for _, x in chunk]) for n in ("xt", "masked", "weight")))
        inputs, scored = denoiser.inputs(batch, noised)
        device = denoiser.model.device
        logits = denoiser(trim(denoiser.pattern, inputs).to(device))
        nll = torch.nn.functional.cross_entropy(logits, scored.target.to(device), reduction="none").double().cpu()
        which = torch.tensor(owner[begin : begin + batch_size])[scored.index // batch.x0.shape[1]]
        total.index_add_(0, which, -nll)
    denoiser.train(training)
    return total.view(-1, OPTIONS).argmax(1).tolist()
