"""Checks, before training or measuring, that a model has positions for the longest rows of an evaluation."""

from __future__ import annotations

from dlm.data import tasks
from dlm.data.pictures import Reader, tokenizer_of
from dlm.decoding.engine.lengths import room
from dlm.evaluation.cloze import CONTEXT_TOKENS, OPTION_TOKENS
from dlm.evaluation.generation import prompt_ids
from dlm.model.denoiser import Denoiser
from dlm.model.positions import require_positions


def require_evaluable(
    denoiser: Denoiser,
    reader: Reader,
    length: int,
    tasks_per_family: int,
    max_new_tokens: int,
    families: tuple[str, ...] | None = None,
) -> None:
    """Raises `ValueError` if a row of prose of `length` tokens, a multiple choice item, or a prompt of the tasks with
    `max_new_tokens` takes more positions, in whole blocks, than the model has, or if no answer fits
    `max_new_tokens`."""
    model, pattern = denoiser.model, denoiser.pattern
    require_positions(model, length, f"evaluation.length {length}")
    cloze = room(CONTEXT_TOKENS + OPTION_TOKENS, pattern, sliding=False)
    require_positions(model, cloze, f"a multiple choice item of {cloze} tokens", "set evaluation=none")
    examples = tasks.evaluation_set("test", tasks_per_family, families=families)
    prompts, tokenizer = prompt_ids(reader, examples), tokenizer_of(reader)
    longest = max(map(len, prompts))
    total = room(longest + max_new_tokens, pattern, sliding=False)
    what = f"evaluation.max_new_tokens {max_new_tokens} after a prompt of {longest} tokens, {total} in whole blocks,"
    require_positions(model, total, what, "lower it, or set evaluation=none")
    shortest = min(map(len, tokenizer([e.answer for e in examples], add_special_tokens=False)["input_ids"]))
    if shortest > max_new_tokens:
        raise ValueError(
            f"evaluation.max_new_tokens {max_new_tokens} cuts every answer, the shortest of which has {shortest} "
            "tokens: set evaluation=long, or evaluation=none"
        )
