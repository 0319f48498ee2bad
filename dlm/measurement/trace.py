"""How a dLM decodes: when each position of a block is committed, and how confident it was before (Efficient-DLM,
Figure 6 a and b)."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from dlm.data import tasks
from dlm.decoding.base import Decoder
from dlm.evaluation.generation import prompt_ids, run_tasks, trace_summary
from dlm.measurement.base import Measurement
from dlm.model.eos import eos_ids


class Trace(Measurement):
    """Decodes `items_per_family` items of a split, and one of them, the one with the longest answer, step by step."""

    def __init__(self, decoder: Decoder, split: str, items_per_family: int, max_new_tokens: int, batch_size: int):
        if split not in tasks.SPLITS:
            raise ValueError(f"measurement.split {split!r} is unknown: choose one of {', '.join(tasks.SPLITS)}")
        if decoder.sliding:
            raise ValueError("measurement=trace counts positions in the blocks of the grid: set decoding.sliding=false")
        self.decoder, self.split, self.items_per_family = decoder, split, items_per_family
        self.max_new_tokens, self.batch_size = max_new_tokens, batch_size

    def __call__(self, subject):
        """`positions`: mean `step` (0 is a block's first) and `confidence` by position in the block, over `n` tokens;
        `masked`: see `masked_by_level`; `example`: see `record`."""
        denoiser, tokenizer = subject.dlm, subject.converted.tokenizer
        examples = tasks.evaluation_set(self.split, self.items_per_family)
        results = run_tasks(denoiser, tokenizer, examples, self.decoder, self.max_new_tokens, self.batch_size)
        size = denoiser.pattern.block_size
        longest = int(results["tokens"].argmax())
        return {
            "block_size": size,
            "items": len(results),
            "positions": trace_summary(results, size),
            "masked": masked_by_level(results, size, tokenizer.eos_token_id is not None).tolist(),
            "example": self.record(denoiser, tokenizer, examples[longest]),
        }

    def record(self, denoiser, tokenizer, example: tasks.Example) -> dict[str, Any]:
        """The decoding of one item: for each forward (`step`, from 1) the `confidence` of every position that was still
        masked, and which were `committed`; `tokens` has the text of each position of the answer, the first of which is
        `prompt_tokens`."""
        recorder, (prompt,) = Recorder(self.decoder), prompt_ids(tokenizer, [example])
        # With a `stop` no step is replayed as a CUDA graph, in which nothing could be recorded.
        (made,) = recorder.generate(
            denoiser, [prompt], self.max_new_tokens, eos_ids(denoiser.model, tokenizer), stop=lambda tokens: False
        )
        size = denoiser.pattern.block_size
        step_of = dict(enumerate(made.step, start=len(prompt)))
        cells = []
        for step, confidence in enumerate(recorder.seen, start=1):
            # What is committed from here on begins in the current block; a token behind the later EOS is not kept.
            block = min(p for p, s in step_of.items() if s >= step) // size
            for position, value in enumerate(confidence, start=block * size):
                if value >= 0 and position in step_of:
                    committed = step_of[position] == step
                    cells.append({"position": position, "step": step, "confidence": value, "committed": committed})
        return {
            "prompt": example.prompt,
            "output": tokenizer.decode(made.tokens, skip_special_tokens=True),
            "prompt_tokens": len(prompt),
            "tokens": [tokenizer.decode([token]) for token in made.tokens],
            "cells": cells,
        }


class Recorder(Decoder):
    """Another decoder, and what it was shown: `seen` has the confidences of the block in each forward, -1 where nothing
    was masked."""

    def __init__(self, inner: Decoder):
        super().__init__(inner.temperature, inner.top_p)
        self.inner, self.seen = inner, []
        self.rank, self.confidence, self.remask_below = inner.rank, inner.confidence, inner.remask_below

    def select(self, confidence, rank):
        self.seen.append(confidence[0].tolist())
        return self.inner.select(confidence, rank)


def masked_by_level(results: pd.DataFrame, block_size: int, ends_in_eos: bool) -> Float[np.ndarray, "K K"]:
    """Row j, column i: how often position i of a block is masked where a fraction in (j, j + 1] / block_size of the
    block's answer positions is, over all forwards of the decoding: the states that a model meets at test time.

    Positions behind the EOS of an answer are committed with it, as training documents have EOS up to the end of their
    block. One observation of each cell is added that says uniform, so a state that was never met is uniform.
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
