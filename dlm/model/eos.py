"""The tokens that end an answer."""

from __future__ import annotations

from transformers import PreTrainedModel, PreTrainedTokenizerBase


def eos_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokenizer's EOS first, which ends the documents of training and fills what is behind it, then the others that
    the model's generation_config.json names: an instruct model ends its turn with a token of its own."""
    config = getattr(model, "generation_config", None)
    named = None if config is None else config.eos_token_id
    others = named if isinstance(named, list) else [named]
    return list(dict.fromkeys(i for i in (tokenizer.eos_token_id, *others) if i is not None))
