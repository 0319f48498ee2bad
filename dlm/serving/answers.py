"""The answer to one prompt, as it is made: final tokens become text that is never taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from transformers import PreTrainedTokenizerBase

from dlm.decoding.engine.canvas import Generation
from dlm.decoding.engine.stops import StopStrings

INCOMPLETE = "�"  # the text of bytes that are not a whole character


@dataclass
class Growing:
    """The text of an answer while it grows. `more(tokens)` gives what can be shown: not the beginning of a stop, of a
    character or of a special token's text, which later tokens may change."""

    tokenizer: PreTrainedTokenizerBase
    stops: Sequence[str] = ()
    tokens: list[int] = field(default_factory=list)
    shown: str = ""

    def __post_init__(self):
        self.special = set(self.tokenizer.all_special_ids)

    def more(self, tokens: Sequence[int]) -> str:
        self.tokens += tokens
        plain = next((n for n, token in enumerate(self.tokens) if token in self.special), len(self.tokens))
        text = self.tokenizer.decode(self.tokens[:plain]).rstrip(INCOMPLETE)
        return self.show(text[: len(text) - self.held_back(text)])

    def rest(self, text: str) -> str:
        """What is still to be shown of the whole text."""
        return self.show(text)

    def show(self, text: str) -> str:
        if not text.startswith(self.shown):  # a tokenizer whose text of a beginning is no beginning of its text
            return ""
        new, self.shown = text[len(self.shown) :], text
        return new

    def held_back(self, text: str) -> int:
        """How many characters at the end belong to a stop, or may once more follow."""
        starts = [text.index(stop) for stop in self.stops if stop in text]
        if starts:
            return len(text) - min(starts)
        begun = (n for stop in self.stops for n in range(1, len(stop)) if text.endswith(stop[:n]))
        return max(begun, default=0)


@dataclass(frozen=True)
class Answer:
    """A finished answer: its text, cut before the first stop, and the tokens that are left."""

    text: str
    generation: Generation
    finish_reason: str

    @classmethod
    def of(cls, generation: Generation, stop: StopStrings, eos_ids: Sequence[int]) -> Answer:
        text, kept = stop.cut(generation)
        ended = generation.tokens[-1:] and generation.tokens[-1] in eos_ids
        stopped = ended or any(s in stop.tokenizer.decode(generation.tokens) for s in stop.strings)
        return cls(text, kept, "stop" if stopped else "length")


def usage(prompts: Sequence[Sequence[int]], answers: Sequence[Answer]) -> dict[str, Any]:
    """The cost of answers: OpenAI's counts of tokens, and the number of forwards (NFE) and tokens per forward (TPF)."""
    prompt, completion = sum(map(len, prompts)), sum(len(a.generation.tokens) for a in answers)
    nfe = sum(a.generation.nfe for a in answers)
    return {
        "prompt_tokens": prompt,
        "completion_tokens": completion,
        "total_tokens": prompt + completion,
        "nfe": nfe,
        "tpf": completion / nfe if nfe else 0.0,
    }
