"""Decode with a converted model and watch it: `python -m dlm.generate prompt="reverse:ABCDEFG="`.

Every forward commits some of the masked tokens of the current block. On a terminal the canvas is drawn after each of
them; at the end every token carries the number and the colour of the forward that committed it.
"""

from __future__ import annotations

import itertools
import re
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, replace

import hydra
from omegaconf import DictConfig, ListConfig, OmegaConf
from rich.cells import cell_len
from rich.console import Console
from rich.live import Live
from rich.text import Text
from transformers import PreTrainedTokenizerBase

from dlm.build import ar_denoiser, converted_denoiser, make
from dlm.console import command
from dlm.data.packing import adds_bos
from dlm.decoding.base import Decoder
from dlm.decoding.engine import Canvas, Generation, generate
from dlm.decoding.fixed import Fixed
from dlm.denoiser import Denoiser
from dlm.export import trained_model
from dlm.parent import load_parent
from dlm.runs import Run
from dlm.types import generator

MASKED, NEW = "░", "bold black on green"
RAMP = ("yellow", "green", "cyan", "blue", "magenta", "red")  # from the first forward to the last
SPACES = str.maketrans({" ": "␣", "\n": "⏎", "\t": "⇥"})
INDENT = 13  # columns of the labels

OnFrame = Callable[[Canvas, float], None]  # the canvas after a forward, and the seconds of decoding so far


@dataclass(frozen=True)
class Answer:
    """What a model made of one prompt: its text and its tokens, cut before a stop string, and the seconds it took."""

    text: str
    generation: Generation
    seconds: float


@dataclass(frozen=True)
class Speaker:
    """A model that answers: what the answers of a dLM and of its parent have in common with one another."""

    name: str
    denoiser: Denoiser
    tokenizer: PreTrainedTokenizerBase
    decoder: Decoder

    def encode(self, prompt: str, max_new_tokens: int) -> list[int]:
        """The tokens of a prompt, with BOS where training had it; `ValueError` where it cannot be continued."""
        bos = [self.tokenizer.bos_token_id] if adds_bos(self.tokenizer) else []
        ids = bos + self.tokenizer(prompt, add_special_tokens=False)["input_ids"]
        if not ids and self.denoiser.token_shift:
            raise ValueError(
                f"prompt {prompt!r} is empty, and the {self.name} scores every token from the one before it: give "
                "some text to continue"
            )
        limit = getattr(self.denoiser.model.config.get_text_config(), "max_position_embeddings", None)
        if limit and len(ids) + max_new_tokens > limit:
            raise ValueError(
                f"the prompt's {len(ids)} tokens and max_new_tokens {max_new_tokens} exceed the model's {limit} "
                "positions: shorten the prompt or lower max_new_tokens"
            )
        return ids

    def answer(
        self, ids: list[int], max_new_tokens: int, stops: list[str], seed: int, on_frame: OnFrame | None = None
    ) -> Answer:
        """Continue the prompt `ids`; `stops` end it early. The time is that of decoding, without that of `on_frame`."""
        eos_id, draw = self.tokenizer.eos_token_id, generator(seed)

        def stopped(tokens: list[int]) -> bool:
            text = self.tokenizer.decode(tokens)
            return any(stop in text for stop in stops)

        drawing = 0.0

        def on_step(canvas: Canvas) -> None:
            nonlocal drawing
            now = time.perf_counter()
            on_frame(canvas, now - begin - drawing)
            drawing += time.perf_counter() - now

        generate(self.denoiser, [ids], self.decoder, 1, eos_id, generator=generator(seed))  # the first one is slow
        begin = time.perf_counter()
        (made,) = generate(
            self.denoiser, [ids], self.decoder, max_new_tokens, eos_id,
            generator=draw, stop=stopped if stops else None, on_step=on_step if on_frame else None,
        )  # fmt: skip
        seconds = time.perf_counter() - begin - drawing
        return Answer(*cut(made, self.tokenizer, stops), seconds)


def cut(made: Generation, tokenizer: PreTrainedTokenizerBase, stops: list[str]) -> tuple[str, Generation]:
    """The text before the first stop string, and the tokens that lie before it. Every forward still counts."""
    text = tokenizer.decode(made.tokens)
    found = [text.index(stop) for stop in stops if stop in text]
    if not found:
        return tokenizer.decode(made.tokens, skip_special_tokens=True), made
    end = min(found)
    kept = next(n for n in range(len(made.tokens), -1, -1) if len(tokenizer.decode(made.tokens[:n])) <= end)
    lists = {name: getattr(made, name)[:kept] for name in ("tokens", "step", "confidence")}
    return text[:end], replace(made, **lists)
