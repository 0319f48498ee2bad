"""Public-domain English prose, cut into chapters; every chapter belongs to one split."""

from __future__ import annotations

from functools import cache
from importlib import resources


@cache
def chapters(split: str) -> tuple[str, ...]:
    """The chapters of a split, in order: of every 20, one is val, one test and 18 train."""
    text = resources.files("dlm").joinpath("assets/prose/kjv.txt").read_text(encoding="utf-8")
    held_out = {9: "val", 19: "test"}
    every = text.strip().split("\n\n")
    return tuple(c for i, c in enumerate(every) if held_out.get(i % 20, "train") == split)
