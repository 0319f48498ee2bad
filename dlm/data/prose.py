"""Public-domain English prose, cut into chapters; every chapter belongs to one split."""

from __future__ import annotations

from functools import cache
from importlib import resources

from transformers import PreTrainedTokenizerBase


@cache
def chapters(split: str) -> tuple[str, ...]:
    """The chapters of a split, in order: of every 20, one is val, one test and 18 train."""
    text = resources.files("dlm").joinpath("assets/prose/kjv.txt").read_text(encoding="utf-8")
    held_out = {9: "val", 19: "test"}
    every = text.strip().split("\n\n")
    return tuple(c for i, c in enumerate(every) if held_out.get(i % 20, "train") == split)


def encoded(split: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The chapters of a split in tokens, without special ones. Made once a process for equal tokenizers: sweeps, a
    report's FLOPs and the tests prepare the same data again and again, and this is most of what that takes."""

    def encode() -> list[list[int]]:
        return tokenizer(list(chapters(split)), add_special_tokens=False)["input_ids"]

    if not tokenizer.is_fast:  # one in Python, which nothing cheap tells apart from others
        return encode()
    tokenizer("")  # truncation and padding of an earlier call would tell equal ones apart
    key = split, tokenizer.backend_tokenizer.to_str()
    if key not in ENCODED:
        ENCODED[key] = encode()
    return ENCODED[key]


ENCODED: dict[tuple[str, str], list[list[int]]] = {}
