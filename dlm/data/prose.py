"""Public-domain English prose, cut into chapters; every chapter belongs to one split."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from importlib import resources

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase


@cache
def chapters(split: str) -> tuple[str, ...]:
    """The chapters of a split, in order: of every 20, one is val, one test and 18 train."""
    text = resources.files("dlm").joinpath("assets/prose/kjv.txt").read_text(encoding="utf-8")
    held_out = {9: "val", 19: "test"}
    every = text.strip().split("\n\n")
    return tuple(c for i, c in enumerate(every) if held_out.get(i % 20, "train") == split)


def encoded(split: str, tokenizer: PreTrainedTokenizerBase) -> Sequence[list[int]]:
    """The chapters of a split in tokens, without special ones."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:  # a tokenizer in Python
        return tokenizer(list(chapters(split)), add_special_tokens=False)["input_ids"]
    return encoded_by(backend.to_str(), split)


@cache
def encoded_by(tokenizer: str, split: str) -> tuple[list[int], ...]:
    """Once a process for a tokenizer, given as JSON: sweeps, a report's FLOPs and the tests prepare the same data again
    and again, and this is most of what that takes."""
    encodings = Tokenizer.from_str(tokenizer).encode_batch(chapters(split), add_special_tokens=False)
    return tuple(e.ids for e in encodings)
