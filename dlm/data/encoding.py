"""Tokenises external text, whose characters never become a special token."""

from __future__ import annotations

from collections.abc import Iterable

from transformers import PreTrainedTokenizerBase


def encode(tokenizer: PreTrainedTokenizerBase, texts: list[str], add_special_tokens: bool = True) -> list[list[int]]:
    """The token ids of each text. A text that spells `<eos>` gets the tokens of these five characters, not EOS. Special
    tokens that the tokenizer itself adds (BOS) are added as usual."""
    if not texts:
        return []
    encoded = tokenizer(
        texts,
        add_special_tokens=add_special_tokens,
        split_special_tokens=True,
        return_attention_mask=False,
        return_token_type_ids=False,
    )
    return encoded["input_ids"]


def refuse_mask(tokenizer: PreTrainedTokenizerBase, documents: Iterable[tuple[str, list[int]]]) -> None:
    """Raises `ValueError` for the first (name, token ids) that holds the mask token, which is never predicted. It can
    occur in a text only if it is an ordinary token of the vocabulary."""
    mask_id = tokenizer.mask_token_id
    for name, ids in documents:
        if mask_id is not None and mask_id in ids:
            raise ValueError(
                f"{name} holds the mask token {tokenizer.mask_token!r} (id {mask_id}), which can never be predicted: "
                "name another token with model.mask_token, or take it out of the text"
            )
