"""Multiple choice by likelihood, on cloze items from held-out prose: which of four continuations is the real one?"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from dlm.attention.base import NoisePer
from dlm.data.packing import Document, collate, pack
from dlm.model.denoiser import Denoiser
from dlm.model.trim import trim
from dlm.types import Batch, Noised

OPTIONS, CONTEXT_TOKENS, OPTION_TOKENS = 4, 40, 8


@dataclass(frozen=True)
class Item:
    """Token ids of a context and of its options; `answer` is the index of the real continuation."""

    context: list[int]
    options: list[list[int]]
    answer: int


def items(texts: list[str], tokenizer: PreTrainedTokenizerBase, num: int, seed: int = 0) -> list[Item]:
    """`num` items, the same for the same arguments. The wrong options are passages from elsewhere in the texts.
    `ValueError` if all texts are too short."""
    rng = random.Random(seed)
    span = CONTEXT_TOKENS + OPTION_TOKENS
    encoded = [ids for ids in tokenizer(texts, add_special_tokens=False)["input_ids"] if len(ids) > 2 * span]
    if not encoded:
        raise ValueError(f"no held-out text has {2 * span} tokens for the cloze items")

    def cut() -> list[int]:
        ids = rng.choice(encoded)
        start = rng.randrange(len(ids) - span)
        return ids[start : start + span]

    drawn = []
    for _ in range(num):
        window = cut()
        options = [window[CONTEXT_TOKENS:]] + [cut()[CONTEXT_TOKENS:] for _ in range(OPTIONS - 1)]
        order = rng.sample(range(OPTIONS), OPTIONS)
        drawn.append(Item(window[:CONTEXT_TOKENS], [options[i] for i in order], order.index(0)))
    return drawn


def reveal(denoiser: Denoiser, context: list[int], option: list[int], eos_id: int) -> tuple[Batch, Noised]:
    """The noisy rows whose scored tokens give log p(option | context), revealed from left to right.

    Token i of the option is scored with the option's earlier tokens visible and all later ones hidden, as in decoding
    from left to right; masks fill the last block, as in decoding. AR scores all tokens at once. With a clean stream,
    the steps are views of one row and share its clean stream; otherwise each step is a row.
    """
    ids, pattern = context + option, denoiser.pattern
    length = -(-len(ids) // pattern.block_size) * pattern.block_size
    padded = Document(ids + [eos_id] * (length - len(ids)), [True] * length)
    first, last = torch.arange(len(context), len(ids))[:, None], len(ids)
    if pattern.noise_per is NoisePer.TOKEN:
        first = first[:1]
    else:
        last = first + 1
    column, views = torch.arange(length), pattern.noisy_stream and pattern.clean_stream
    batch = collate([pack([padded], length, eos_id)] * (1 if views else len(first)))
    scored, hidden = (column >= first) & (column < last), (column >= first) & pattern.noisy_stream
    steps = (torch.where(hidden, denoiser.mask_id, batch.x0), scored, scored.float())
    return batch, Noised(*(step.view(len(batch.x0), -1) for step in steps))


@torch.no_grad()
def answers(denoiser: Denoiser, cloze: list[Item], eos_id: int, batch_size: int) -> list[int]:
    """The index of the likeliest option of every item, computed about `batch_size` noisy rows at a time."""
    revealed = [reveal(denoiser, item.context, option, eos_id) for item in cloze for option in item.options]
    steps = revealed[0][1].xt.numel() // revealed[0][0].x0.shape[1]
    size = max(batch_size // steps, 1)  # options at a time
    training, device = denoiser.training, denoiser.model.device
    denoiser.eval()
    log_p = []
    for begin in range(0, len(revealed), size):
        chunk = revealed[begin : begin + size]
        batch = Batch(
            *(torch.cat([getattr(b, n) for b, _ in chunk]) for n in ("x0", "maskable", "document", "position"))
        )
        noised = Noised(*(torch.cat([getattr(x, n) for _, x in chunk]) for n in ("xt", "masked", "weight")))
        inputs, scored = denoiser.inputs(batch, noised)
        inputs = trim(inputs).settled()
        logits = denoiser(inputs.to(device))
        nll = torch.nn.functional.cross_entropy(logits, scored.target.to(device), reduction="none").double().cpu()
        option_of = scored.index // (len(batch.x0) // len(chunk) * batch.x0.shape[1])
        log_p.append(torch.zeros(len(chunk), dtype=torch.float64).index_add_(0, option_of, -nll))
    denoiser.train(training)
    return torch.cat(log_p).view(-1, OPTIONS).argmax(1).tolist()
