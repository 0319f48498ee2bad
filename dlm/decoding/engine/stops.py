"""Texts that end an answer."""

from __future__ import annotations

from dataclasses import dataclass, replace

from transformers import PreTrainedTokenizerBase

from dlm.decoding.engine.canvas import Generation


@dataclass(frozen=True)
class StopStrings:
    """Ends an answer at the first of these texts, as a `Request.stop`, and cuts it before that. Raises `ValueError` for
    an empty text, which is in every answer."""

    strings: tuple[str, ...]
    tokenizer: PreTrainedTokenizerBase

    def __post_init__(self):
        if "" in self.strings:
            raise ValueError("stop holds an empty text, which is in every answer: leave it out")

    def __bool__(self) -> bool:
        return bool(self.strings)

    def __call__(self, tokens: list[int]) -> bool:
        text = self.tokenizer.decode(tokens)
        return any(stop in text for stop in self.strings)

    def cut(self, generation: Generation) -> tuple[str, Generation]:
        """The text and the generation before the first stop. The number of forwards stays that of all tokens."""
        text = self.tokenizer.decode(generation.tokens)
        starts = [text.index(stop) for stop in self.strings if stop in text]
        if not starts:
            return self.tokenizer.decode(generation.tokens, skip_special_tokens=True), generation
        end, tokens = min(starts), generation.tokens
        num_tokens = next(n for n in range(len(tokens), -1, -1) if len(self.tokenizer.decode(tokens[:n])) <= end)
        lists = {name: getattr(generation, name)[:num_tokens] for name in ("tokens", "step", "confidence")}
        return text[:end], replace(generation, **lists)
