"""Public-domain English prose in chapters; every chapter belongs to one split."""

from __future__ import annotations

from functools import cache
from importlib import resources

from transformers import PreTrainedTokenizerBase


@cache
def chapters(split: str) -> tuple[str, ...]:
    """The chapters of a split, in order. Of every 20 chapters, 18 are train, one is val and one is test."""
    text = resources.files("dlm").joinpath("assets/prose/kjv.txt").read_text(encoding="utf-8")
    held_out = {9: "val", 19: "test"}
    all_chapters = text.strip().split("\n\n")
    return tuple(c for i, c in enumerate(all_chapters) if held_out.get(i % 20, "train") == split)


def encoded(split: str, tokenizer: PreTrainedTokenizerBase) -> list[list[int]]:
    """The token ids of a split's chapters, without special tokens. They are cached for equal tokenizers:
    sweeps, reports and tests prepare the same data many times, and tokenization takes most of that time."""

    def encode() -> list[list[int]]:
        return tokenizer(list(chapters(split)), add_special_tokens=False)["input_ids"]

    if not tokenizer.is_fast:  # a tokenizer in Python has no serialization that could be the key
        return encode()
    tokenizer("")  # resets truncation and padding of an earlier call, which are part of the serialization
    key = split, tokenizer.backend_tokenizer.to_str()
    if key not in ENCODED:
        ENCODED[key] = encode()
    return ENCODED[key]


ENCODED: dict[tuple[str, str], list[list[int]]] = {}
