"""Exact match on the generated tasks, with the number of forwards and the share of degenerate outputs.

Accuracy alone can hide how a model fails: a dLM whose blocks are too large for it repeats itself or never ends.
"""

from __future__ import annotations

from typing import Any

import pandas as pd
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from dlm.attention.base import AttentionPattern
from dlm.data.example import Example, check, grade
from dlm.data.packing import adds_bos
from dlm.data.pictures import Reader, require_processor, tokenizer_of
from dlm.data.scenes import Scene
from dlm.data.scenes.rows import prompt_of
from dlm.decoding.base import Decoder
from dlm.decoding.engine.canvas import Generation
from dlm.decoding.engine.request import Request
from dlm.evaluation.interval import wilson
from dlm.model.denoiser import Denoiser
from dlm.model.eos import eos_ids
from dlm.types import Images

DEGENERATE = ("repetitive", "empty", "endless")  # columns of degenerate outputs, see `run_tasks`
REPEATS, LOOP = 4, 16  # an output loops if it ends in so many repeats of a sequence, over at least so many tokens


def prompt_ids(reader: Reader, examples: list[Example]) -> list[list[int]]:
    """The token ids of the prompts, with BOS if the tokenizer adds it."""
    return [ids for ids, _ in prompts_of(reader, examples)]


def prompts_of(reader: Reader, examples: list[Example]) -> list[tuple[list[int], Images | None]]:
    """The token ids of each prompt and, of a scene, the tensors of its picture. Raises `ValueError` for scenes that a
    tokenizer is to read."""
    tokenizer = tokenizer_of(reader)
    bos = [tokenizer.bos_token_id] if adds_bos(tokenizer) else []
    prompts: list[tuple[list[int], Images | None]] = []
    for example in examples:
        if isinstance(example, Scene):
            processor = require_processor(reader if isinstance(reader, ProcessorMixin) else None, "a scene")
            prompts.append(prompt_of(processor, example))
        else:
            prompts.append((bos + tokenizer(example.prompt, add_special_tokens=False)["input_ids"], None))
    return prompts


def run_tasks(
    denoiser: Denoiser,
    reader: Reader,
    examples: list[Example],
    decoder: Decoder,
    max_new_tokens: int,
    batch_size: int,
) -> pd.DataFrame:
    """Decode the examples. Returns one row per example: `family, correct, tokens, nfe, rows, prompt_tokens, output`,
    the `answer_tokens` of the right answer without EOS, the share of `right_steps` and the index of the `first_wrong`
    one (see `grade`), the `step` and `confidence` of each token, and whether the output is `repetitive` (see `loops`),
    `empty` (EOS is its first token) or `endless` (it has no EOS). `rows` counts the input tokens of all forwards."""
    tokenizer = tokenizer_of(reader)
    ends = eos_ids(denoiser.model, tokenizer)
    prompts, images = zip(*prompts_of(reader, examples), strict=True)
    request = Request(list(prompts), max_new_tokens, ends, batch_size, images=images)
    generations = decoder.generate(denoiser, request)
    answered = zip(examples, prompts, generations, strict=True)
    return pd.DataFrame([graded(tokenizer, ends, *answer) for answer in answered])


def graded(
    tokenizer: PreTrainedTokenizerBase, ends: list[int], example: Example, prompt: list[int], generation: Generation
) -> dict[str, Any]:
    """The row of one example in the table of `run_tasks`. `ends` are the end-of-sequence tokens."""
    output = tokenizer.decode(generation.tokens, skip_special_tokens=True)
    ended = not set(ends).isdisjoint(generation.tokens[-1:])
    text = generation.tokens[:-1] if ended else generation.tokens
    steps = grade(example, output)
    return {
        "family": example.family,
        "correct": check(example, output),
        "right_steps": steps.right,
        "first_wrong": steps.first_wrong,
        "answer_tokens": len(tokenizer(example.answer, add_special_tokens=False)["input_ids"]),
        "tokens": len(generation.tokens),
        "nfe": generation.nfe,
        "rows": generation.rows,
        "repetitive": loops(text),
        "empty": not text,
        "endless": not ended,
        "prompt_tokens": len(prompt),
        "step": generation.step,
        "confidence": generation.confidence,
        "output": output,
    }


def loops(tokens: list[int]) -> bool:
    """Whether the tokens end in a sequence, of any length, repeated at least `REPEATS` times over at least `LOOP`
    tokens."""
    for period in range(1, len(tokens) // REPEATS + 1):
        span = tokens[-max(REPEATS * period, LOOP) :]
        if len(span) >= LOOP and span[period:] == span[:-period]:
            return True
    return False


def accuracy(results: pd.DataFrame) -> dict:
    """Exact match with its 95 % Wilson interval, tokens per forward and per input row, and the shares of right steps
    and of degenerate outputs (the last three if `results` has their columns), over all items and per family."""

    def summarize(group: pd.DataFrame) -> dict:
        low, high = wilson(int(group["correct"].sum()), len(group))
        optional = group.filter(items=["right_steps", *DEGENERATE]).mean().to_dict()
        if "rows" in group:
            optional["tokens_per_row"] = float(group["tokens"].sum() / group["rows"].sum())
        return {
            "accuracy": float(group["correct"].mean()),
            "low": low,
            "high": high,
            "n": len(group),
            "tpf": float(group["tokens"].sum() / group["nfe"].sum()),
            "nfe": float(group["nfe"].mean()),
            **optional,
        }

    return summarize(results) | {"families": {name: summarize(group) for name, group in results.groupby("family")}}


def on_grid(results: pd.DataFrame, pattern: AttentionPattern) -> pd.DataFrame:
    """Results whose `prompt_tokens` are moved to the pattern's grid, on which blocks begin at multiples of their
    size."""
    return results.assign(prompt_tokens=results["prompt_tokens"] + pattern.to_grid(results["prompt_tokens"]))


def trace_summary(results: pd.DataFrame, block_size: int) -> list[dict]:
    """For each position of a block: the mean `step` that committed it, counted from the block's first step, its mean
    `confidence`, and the number `n` of tokens (Efficient-DLM, Figure 6a). The results are `on_grid`."""
    traces = []
    for item in results.itertuples():
        positions = range(item.prompt_tokens, item.prompt_tokens + len(item.step))
        blocks = pd.DataFrame(
            {"block": [p // block_size for p in positions], "position": [p % block_size for p in positions]}
        ).assign(step=item.step, confidence=item.confidence)
        blocks["step"] -= blocks.groupby("block")["step"].transform("min")
        traces.append(blocks)
    summary = (
        pd.concat(traces)
        .groupby("position")
        .agg(step=("step", "mean"), confidence=("confidence", "mean"), n=("step", "size"))
    )
    return summary.reset_index().to_dict("records")
