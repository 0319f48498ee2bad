"""The trace of an answer: what every forward committed, how sure it was, and what it guessed of the rest.

It is what the page draws (`dlm.watch.page`), from a file or event by event as it is made. Every class is a dataclass of
plain values, and its JSON is `dataclasses.asdict`. Positions are absolute: position p of a sequence whose prompt has n
tokens is token p − n of the answer.

    opening    Opening       the model's name, the prompt's tokens, the block size
    step       Step          one per forward, in order
    closing    Closing       the answer's text and its cost
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Any

from transformers import PreTrainedTokenizerBase

from dlm.attention.base import AttentionPattern
from dlm.decoding.engine.canvas import Canvas
from dlm.watch.picture import Picture
from dlm.watch.pieces import token_text


@dataclass(frozen=True)
class Predictions:
    """Tokens at positions of a sequence, each with its text and its confidence in [0, 1]; four lists of one length."""

    positions: list[int] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    texts: list[str] = field(default_factory=list)
    confidences: list[float] = field(default_factory=list)

    def before(self, end: int) -> Predictions:
        """Those at positions below `end`."""
        kept = [i for i, position in enumerate(self.positions) if position < end]
        return Predictions(*([values[i] for i in kept] for values in vars(self).values()))


@dataclass(frozen=True)
class Step:
    """One forward, numbered from 1. It denoised the positions of `block`, from the first up to, not including, the
    second.

    `committed` are the tokens that it wrote: at masked positions, or, where a decoder revises, in place of others.
    `guesses` are its other predictions: of positions that stay masked, and of visible tokens that it scored again.
    `remasked` are the positions whose tokens it took back. `seconds` is the time of decoding so far."""

    forward: int
    block: tuple[int, int]
    committed: Predictions
    guesses: Predictions
    remasked: list[int]
    seconds: float

    def before(self, end: int) -> Step:
        """The same forward without the positions from `end` on."""
        return replace(
            self,
            block=(min(self.block[0], end), min(self.block[1], end)),
            committed=self.committed.before(end),
            guesses=self.guesses.before(end),
            remasked=[position for position in self.remasked if position < end],
        )


@dataclass(frozen=True)
class Opening:
    """What is known before the first forward: the texts of the prompt's tokens, too, and the tokens that end an answer.
    What is committed behind the first of these `ends` is no part of it. A block begins at every position that is a
    multiple of `block_size` if `to_grid` is added."""

    name: str
    prompt_tokens: list[int]
    prompt_texts: list[str]
    block_size: int
    to_grid: int
    ends: list[int]


@dataclass(frozen=True)
class Closing:
    """What is known after the last forward: `tokens` is how many the answer has, up to its end or a stop string, and
    `seconds` the time of decoding."""

    text: str
    tokens: int
    nfe: int
    seconds: float
    tpf: float
    tokens_per_second: float


@dataclass(frozen=True)
class Trace:
    """The answer of one model to one prompt."""

    opening: Opening
    steps: list[Step]
    closing: Closing


@dataclass(frozen=True)
class Race:
    """One prompt, with its pictures, and the traces of the models that answered it, the dLM's first; `settings` are
    those of decoding, by name."""

    prompt: str
    settings: dict[str, Any]
    traces: list[Trace]
    pictures: list[Picture] = field(default_factory=list)


def opening(
    name: str, tokenizer: PreTrainedTokenizerBase, prompt: list[int], pattern: AttentionPattern, ends: list[int]
) -> Opening:
    """The opening of the trace of a prompt's token ids, whose answer is decoded under the pattern."""
    texts = [token_text(tokenizer, token) for token in prompt]
    return Opening(name, prompt, texts, pattern.block_size, pattern.to_grid(len(prompt)), ends)


def closing(text: str, tokens: int, nfe: int, seconds: float) -> Closing:
    """The closing of a trace, with the rates that follow from its numbers."""
    return Closing(text, tokens, nfe, seconds, tokens / nfe, tokens / seconds)


class Recorder:
    """Makes the steps of one sequence from its canvas: `see` is called after every forward."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase):
        self.tokenizer, self.steps, self.texts = tokenizer, [], {}
        self.start: int | None = None  # of the block that the next forward denoises
        self.tokens: list[int] = []  # of the answer's positions; -1 where masked

    def see(self, canvas: Canvas, seconds: float, row: int = 0) -> Step | None:
        """The step of the sequence in this row of the canvas; None if the last forward was not one of its own."""
        forward, begin, most = (int(t[row]) for t in (canvas.nfe, canvas.prompt_length, canvas.limit))
        if self.start is None:
            self.start = int(canvas.block_begin(canvas.prompt_length)[row])
            self.tokens = [-1] * most
        if forward == len(self.steps):
            return None
        span = slice(begin, begin + most)
        tokens = canvas.x[row, span].masked_fill(canvas.masked[row, span], -1).tolist()
        confidence = canvas.confidence[row, span].tolist()
        before, self.tokens = self.tokens, tokens + [-1] * (most - len(tokens))
        changed = [i for i, token in enumerate(tokens) if token != before[i]]
        written = [i for i in changed if tokens[i] >= 0]
        committed = self.predictions([(begin + i, tokens[i], confidence[i]) for i in written])
        slots, token, certainty, predicted = (t.tolist() for t in canvas.last_predictions(row, self.start))
        others = zip(slots, token, certainty, predicted, strict=True)
        guesses = [(s, t, c) for s, t, c, made in others if made and s >= begin and s - begin not in written]
        step = Step(
            forward,
            (slots[0], slots[-1] + 1),
            committed,
            self.predictions(guesses),
            [begin + i for i in changed if tokens[i] < 0],
            seconds,
        ).before(begin + most)
        self.start = int(canvas.start[row])
        self.steps.append(step)
        return step

    def predictions(self, found: list[tuple[int, int, float]]) -> Predictions:
        """Predictions from positions, tokens and confidences."""
        for _, token, _ in found:
            if token not in self.texts:
                self.texts[token] = token_text(self.tokenizer, token)
        columns = [[*column] for column in zip(*found, strict=True)] or [[], [], []]
        positions, tokens, confidences = columns
        return Predictions(positions, tokens, [self.texts[token] for token in tokens], confidences)
