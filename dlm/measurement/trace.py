"""Traces decoding: the step at which each position of a block is committed, and its confidence before (Efficient-DLM,
Figure 6 a and b)."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from dlm.data import tasks
from dlm.data.example import SPLITS, Example
from dlm.data.pictures import Reader, tokenizer_of
from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import Generation
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.engine.request import Request
from dlm.decoding.engine.rule import CommitRule
from dlm.evaluation.generation import on_grid, prompts_of, run_tasks, trace_summary
from dlm.measurement.base import Measurement
from dlm.model.denoiser import Denoiser
from dlm.model.eos import eos_ids


class Trace(Measurement):
    """Decodes `items_per_family` items of a split, and records every step for the item with the longest answer."""

    def __init__(self, decoder: Decoder, split: str, items_per_family: int, max_new_tokens: int, batch_size: int):
        if split not in SPLITS:
            raise ValueError(f"measurement.split {split!r} is unknown: choose one of {', '.join(SPLITS)}")
        if decoder.loop.sliding:
            raise ValueError(
                f"measurement=trace counts positions in the blocks of the grid, and {type(decoder).__name__} has none: "
                "set decoding.sliding=false, or decoding=threshold where there is no such option"
            )
        self.decoder, self.split, self.items_per_family = decoder, split, items_per_family
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def __call__(self, subject):
        """`positions`: mean `step` (0 is a block's first) and `confidence` by position in the block, over `n` tokens;
        `order`: see `order_in_full_blocks`; `masked`: see `masked_by_level`; `example`: see `record`."""
        denoiser, reader = subject.dlm, subject.converted.reader
        examples = tasks.evaluation_set(self.split, self.items_per_family, families=subject.asked)
        results = run_tasks(denoiser, reader, examples, self.decoder, self.max_new_tokens, self.batch_size)
        results, size = on_grid(results, denoiser.pattern), denoiser.pattern.block_size
        longest = int(results["tokens"].argmax())
        return {
            "block_size": size,
            "items": len(results),
            "positions": trace_summary(results, size),
            "order": order_in_full_blocks(results, size),
            "masked": masked_by_level(results, size, tokenizer_of(reader).eos_token_id is not None).tolist(),
            "example": self.record(denoiser, reader, examples[longest]),
        }

    def record(self, denoiser: Denoiser, reader: Reader, example: Example) -> dict[str, Any]:
        """The decoding of one item. `cells` holds, for each forward (`step`, from 1), the `confidence` of every masked
        position and whether it was `committed`; `tokens` is the text of each position of the answer, which begins at
        position `prompt_tokens`."""
        tokenizer, ((prompt, images),) = tokenizer_of(reader), prompts_of(reader, [example])
        request = Request([prompt], self.max_new_tokens, eos_ids(denoiser.model, tokenizer), images=[images])
        generation, confidences = decode_recording(denoiser, self.decoder.rule, request)
        size, to_grid = denoiser.pattern.block_size, denoiser.pattern.to_grid(len(prompt))
        step_of = dict(enumerate(generation.step, start=len(prompt)))
        cells = []
        for step, confidence in enumerate(confidences, start=1):
            # The current block holds the first token committed at or after this step. Tokens behind the final EOS,
            # which are not part of the generation, have no cell.
            first = min(p for p, s in step_of.items() if s >= step)
            for position, value in enumerate(confidence, start=first - (first + to_grid) % size):
                if value >= 0 and position in step_of:
                    committed = step_of[position] == step
                    cells.append({"position": position, "step": step, "confidence": value, "committed": committed})
        return {
            "prompt": example.prompt,
            "output": tokenizer.decode(generation.tokens, skip_special_tokens=True),
            "prompt_tokens": len(prompt),
            "tokens": [tokenizer.decode([token]) for token in generation.tokens],
            "cells": cells,
        }


def order_in_full_blocks(results: pd.DataFrame, block_size: int) -> dict[str, Any]:
    """The order of commitment in blocks that hold nothing but answer: without those that the prompt or the end cuts,
    and without EOS, before which commit rules commit nothing that is behind it.

    `positions`: mean `step` by position, over `n` blocks; `correlation`: the mean of the blocks' rank correlations
    (Spearman) of step and position, over `blocks` of them. A block that is committed in one step has none; None without
    any.
    """
    steps, correlations = [], []
    for item in results.itertuples():
        length = len(item.step) - (not item.endless)
        first = -(-item.prompt_tokens // block_size) * block_size
        for start in range(first, item.prompt_tokens + length - block_size + 1, block_size):
            at = start - item.prompt_tokens
            step = pd.Series(item.step[at : at + block_size], dtype=float)
            steps.append(step - step.min())
            if step.nunique() > 1:
                correlations.append(step.rank().corr(pd.Series(step.index, dtype=float)))
    means = pd.concat(steps, axis=1).mean(axis=1) if steps else pd.Series(dtype=float)
    positions = [{"position": int(p), "step": float(v), "n": len(steps)} for p, v in means.items()]
    correlation = float(pd.Series(correlations).mean()) if correlations else None
    return {"positions": positions, "correlation": correlation, "blocks": len(correlations)}


class RecordingRule(CommitRule):
    """Wraps a commit rule. `confidences` holds the confidences [K] of the first row's block in each forward, -1 at
    positions that were not masked."""

    def __init__(self, rule: CommitRule):
        super().__init__(rule.temperature, rule.top_p)
        self.confidences: list[list[float]] = []
        self.rule, self.remask_below = rule, rule.remask_below
        self.rank, self.confidence = rule.rank, rule.confidence

    def select(self, confidence, rank):
        self.confidences.append(confidence[0].tolist())
        return self.rule.select(confidence, rank)


def decode_recording(denoiser: Denoiser, rule: CommitRule, request: Request) -> tuple[Generation, list[list[float]]]:
    """Decode one prompt block by block. Returns the generation, and the confidences of the block in each forward."""
    recording = RecordingRule(rule)
    # A `stop` prevents steps from being replayed as CUDA graphs, which would record nothing.
    (generation,) = Decoder(Blocks(), recording).generate(denoiser, replace(request, stop=lambda tokens: False))
    return generation, recording.confidences


def masked_by_level(results: pd.DataFrame, block_size: int, ends_in_eos: bool) -> Float[np.ndarray, "K K"]:
    """How often each position of a block is masked, by noise level, over all forwards of the decoding. Row j, column i
    is the frequency of position i being masked when a fraction in (j, j + 1] / block_size of the block's answer
    positions is.

    Positions behind the EOS of an answer count as committed with it, since training documents have EOS up to the end of
    their block. One uniform observation is added to each cell, so levels that never occurred are uniform.
    """
    masked, present = (np.zeros((block_size, block_size)) for _ in range(2))
    for item in results.itertuples():
        steps = list(item.step)
        if ends_in_eos:
            steps += [steps[-1]] * (-(item.prompt_tokens + len(steps)) % block_size)
        block_of = np.arange(item.prompt_tokens, item.prompt_tokens + len(steps))
        for block in np.unique(block_of // block_size):
            inside = block_of // block_size == block
            position, step = block_of[inside] % block_size, np.asarray(steps)[inside]
            for forward in np.unique(step):
                hidden = step >= forward
                level = int(np.ceil(hidden.mean() * block_size - 1e-9)) - 1
                masked[level, position] += hidden
                present[level, position] += 1
    uniform = (np.arange(block_size)[:, None] + 1) / block_size
    return (masked + uniform) / (present + 1)
