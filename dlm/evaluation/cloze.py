"""Multiple choice by likelihood, on cloze items from held-out prose: which of four continuations is the real one?"""

from __future__ import annotations

import random
from dataclasses import dataclass

import torch
from transformers import PreTrainedTokenizerBase

from dlm.evaluation.scores import scores
from dlm.model.denoiser import Denoiser

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


def answers(denoiser: Denoiser, cloze: list[Item], batch_size: int) -> list[int]:
    """The index of the likeliest option of every item, computed about `batch_size` noisy rows at a time."""
    pairs = [(item.context, option) for item in cloze for option in item.options]
    log_p = torch.tensor([score.log_p for score in scores(denoiser, pairs, batch_size)], dtype=torch.float64)
    return log_p.view(-1, OPTIONS).argmax(1).tolist()
