"""The tokens of a tokenizer and the rows that a model has for them."""

from __future__ import annotations

import sys

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase


def fit_vocabulary(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: str) -> None:
    """Give every token that was added to the tokenizer a row in the embedding and the head, the mean of the others, and
    say so. `ValueError` where words of the tokenizer itself have none: it is another model's."""
    known = model.get_input_embeddings().weight.shape[0]
    beyond = {token: i for token, i in tokenizer.get_vocab().items() if i >= known}
    if not beyond:
        return
    last = max(beyond.values())
    if not beyond.keys() <= tokenizer.get_added_vocab().keys():
        raise ValueError(
            f"the tokenizer of {source!r} has token ids up to {last}, and the model's embedding {known} rows: it is "
            "another model's tokenizer"
        )
    print(
        f"{len(beyond)} tokens that were added to the tokenizer of {source!r} ({', '.join(sorted(beyond)[:3])}, …) "
        f"have no embedding: the model gets rows for them, each the mean of the {known} that it has",
        file=sys.stderr,
    )
    add_rows(model, known, last)


def add_rows(model: PreTrainedModel, known: int, last: int) -> None:
    """Rows in embedding and head up to that of the token `last`; those from `known` on are the mean of those before."""
    if last >= model.get_input_embeddings().weight.shape[0]:
        model.resize_token_embeddings(last + 1, mean_resizing=False)
    with torch.no_grad():
        for layer in (model.get_input_embeddings(), model.get_output_embeddings()):
            layer.weight[known : last + 1] = layer.weight[:known].mean(0, dtype=torch.float32)
