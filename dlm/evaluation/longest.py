"""Whether a model has positions for the longest rows of an evaluation, known before anything is trained or measured."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from dlm.data import tasks
from dlm.decoding.canvas import whole_blocks
from dlm.evaluation.cloze import CONTEXT_TOKENS, OPTION_TOKENS
from dlm.evaluation.generation import prompt_ids
from dlm.model.denoiser import Denoiser
from dlm.model.positions import require_positions


def require_evaluable(
    denoiser: Denoiser, tokenizer: PreTrainedTokenizerBase, length: int, tasks_per_family: int, max_new_tokens: int
) -> None:
    """`ValueError` where a row of prose of `length` tokens, a multiple choice item, or a prompt of the tasks with
    `max_new_tokens` has more tokens, in whole blocks, than the model has positions."""
    model, size = denoiser.model, denoiser.pattern.block_size
    require_positions(model, length, f"evaluation.length {length}")
    cloze = whole_blocks(CONTEXT_TOKENS + OPTION_TOKENS, size)
    require_positions(model, cloze, f"a multiple choice item of {cloze} tokens", "set evaluation=none")
    prompts = prompt_ids(tokenizer, tasks.evaluation_set("test", tasks_per_family))
    longest = max(map(len, prompts))
    row = whole_blocks(longest + max_new_tokens, size)
    what = f"evaluation.max_new_tokens {max_new_tokens} after a prompt of {longest} tokens, {row} in whole blocks,"
    require_positions(model, row, what, "lower it, or set evaluation=none")
