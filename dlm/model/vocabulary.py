"""The tokens of a tokenizer and their rows in a model's embedding and head."""

from __future__ import annotations

import sys

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

NEW_MASK_TOKEN = "<|mask|>"


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Add rows to the embedding and the head for tokens that were added to the tokenizer, each the mean of the others,
    and print a note. Raises `ValueError` if tokens of the base vocabulary have no row: the tokenizer belongs to another
    model. `source` names the parent in messages."""
    num_rows = model.get_input_embeddings().weight.shape[0]
    without_row = {token: i for token, i in tokenizer.get_vocab().items() if i >= num_rows}
    if not without_row:
        return
    last = max(without_row.values())
    if not without_row.keys() <= tokenizer.get_added_vocab().keys():
        raise ValueError(
            f"the tokenizer of {source!r} has token ids up to {last}, and the model's embedding {num_rows} rows: it is "
            "another model's tokenizer"
        )
    print(
        f"{len(without_row)} tokens that were added to the tokenizer of {source!r} "
        f"({', '.join(sorted(without_row)[:3])}, …) have no embedding: the model gets rows for them, each the mean of "
        f"the {num_rows} that it has",
        file=sys.stderr,
    )
    add_rows(model, num_rows, last)


def add_rows(model: PreTrainedModel, first: int, last: int) -> None:
    """Set the rows of the tokens `first` to `last` in embedding and head to the mean of the rows before `first`. Both
    are enlarged if they have no such rows."""
    if last >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(last + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[first : last + 1] = layer.weight[:first].mean(0, dtype=torch.float32)


def choose_mask_token(tokenizer: PreTrainedTokenizerBase, mask_token: str | None) -> bool:
    """Set the tokenizer's mask token: `mask_token`, else its own, else a new one. Returns whether it is new. Raises
    `ValueError` for a `mask_token` that cannot serve as the mask."""
    if mask_token is not None:
        if mask_token not in tokenizer.get_vocab():
            raise ValueError(
                f"model.mask_token {mask_token!r} is not in the vocabulary of {len(tokenizer)} tokens: name one that "
                "is, or leave it empty to add a new one"
            )
        if mask_token in (tokenizer.eos_token, tokenizer.bos_token, tokenizer.unk_token):
            raise ValueError(
                f"model.mask_token {mask_token!r} has another meaning (eos, bos or unk), and the mask is never "
                "predicted: name an unused token, or leave it empty to add a new one"
            )
        tokenizer.mask_token = mask_token
    is_new = tokenizer.mask_token_id is None
    if is_new:
        tokenizer.add_special_tokens({"mask_token": NEW_MASK_TOKEN})
    return is_new


def add_mask_token(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, mask_token: str | None) -> int:
    """The id of the mask token, which is added if the tokenizer has none (see `choose_mask_token`).

    The embedding of a new token is initialised with the mean of the others, and no other row changes. Its output row
    does not matter, since the denoiser never predicts it. Raises `ValueError` for a mask token without an embedding.
    """
    is_new, num_rows = choose_mask_token(tokenizer, mask_token), model.get_input_embeddings().weight.shape[0]
    mask_id = tokenizer.mask_token_id
    if is_new:
        add_rows(model, min(num_rows, mask_id), mask_id)  # any rows between the old end and the mask are new too
    elif mask_id >= num_rows:
        raise ValueError(
            f"the mask token {tokenizer.mask_token!r} has id {mask_id}, outside the model's embedding of {num_rows} "
            "rows: name another with model.mask_token"
        )
    return mask_id
