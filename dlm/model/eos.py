"""The tokens that end an answer."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The ids of the tokens that end an answer. The first is the tokenizer's EOS, which ends the training documents and
    fills the tail after it. The others are those of the model's generation_config.json: an instruct model ends its turn
    with another token."""
    config = getattr(model, "generation_config", None)
    configured = None if config is None else config.eos_token_id
    others = configured if isinstance(configured, list) else [configured]
    return list(dict.fromkeys(i for i in (tokenizer.eos_token_id, *others) if i is not None))


def require_eos(tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Raises `ValueError` for a tokenizer without EOS."""
    if tokenizer.eos_token_id is None:
        raise ValueError(f"the tokenizer of {source!r} has no eos_token, so no answer could end: set one in its folder")
