"""The attention implementation that a model is loaded with."""

from __future__ import annotations

import sys
from collections.abc import Callable
from typing import TypeVar

from transformers import PreTrainedModel

from dlm.attention import block_sparse

T = TypeVar("T")
IMPLEMENTATIONS = (block_sparse.NAME, "sdpa", "eager", "flex_attention")  # all that take an arbitrary mask


def supported(load: Callable[[str], T], implementation: str) -> tuple[T, str]:
    """The result of `load` with an attention implementation, and the name of that. Falls back to `eager`, with a note
    on stderr, if the model's class has no other (soft-capped scores, sinks)."""
    try:
        return load(block_sparse.loaded_as(implementation)), implementation
    except ValueError as error:
        if implementation == "eager" or "does not support an attention implementation" not in str(error):
            raise
    say_eager(implementation)
    return load("eager"), "eager"


def with_attention(model: PreTrainedModel, implementation: str) -> PreTrainedModel:
    """A loaded model with an attention implementation. Older versions of transformers load a model that soft-caps its
    scores with SDPA, which then leaves out the cap without a word: it gets `eager`, with a note on stderr."""
    capped = getattr(model.config.get_text_config(), "attn_logit_softcapping", None) is not None
    if capped and block_sparse.loaded_as(implementation) == "sdpa":
        say_eager(implementation)
        model.set_attn_implementation("eager")
        return model
    return block_sparse.set_implementation(model, implementation)


def say_eager(implementation: str) -> None:
    """A note that the model gets another attention implementation than was asked for."""
    print(f"model.attn_implementation={implementation} is not to be had for this architecture: eager", file=sys.stderr)
