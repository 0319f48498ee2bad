"""Documents with images: what the model's own forward is given for them, and which column stands for which of their
tokens. All of it is on the CPU and needs no weights.

    B rows        L tokens of a row        M documents with images, of T tokens each (padded on the right)
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.functional import pad

from dlm.attention.base import AttentionPattern
from dlm.types import Batch, Images


def pictured(batch: Batch) -> tuple[dict[str, Tensor], Int[Tensor, "B L"]]:
    """The forward's arguments for the documents of a batch that have images, and the token of theirs, flat in [M T],
    that each token of the batch is (-1: of none)."""
    places = [
        (row, (batch.document[row] == number).nonzero()[:, 0], images)
        for row, documents in enumerate(batch.images or ())
        for number, images in documents.items()
    ]
    inputs = joined([batch.x0[row, columns] for row, columns, _ in places], [images for *_, images in places])
    source, width = torch.full_like(batch.x0, -1), inputs["input_ids"].shape[1]
    for m, (row, columns, _) in enumerate(places):
        source[row, columns] = m * width + torch.arange(len(columns))
    return inputs, source


def joined(texts: Sequence[Int[Tensor, " T"]], images: Sequence[Images]) -> dict[str, Tensor]:
    """The forward's arguments for documents side by side. Whatever differs in size (documents in tokens, images in
    pixels or number) is padded on the right with 0. Raises `ValueError` for a document that was cut."""
    for text, document in zip(texts, images, strict=True):
        if len(text) < document.num_tokens:
            raise ValueError(
                f"a document with images was cut to {len(text)} of the {document.num_tokens} tokens that it has up to "
                "its answer: an image is read whole or not at all; raise data.length or leave the document out"
            )
    width = max(map(len, texts))
    arguments = {"input_ids": torch.stack([pad(text, (0, width - len(text))) for text in texts])}
    for name in dict.fromkeys(name for document in images for name in document.of_tokens):
        example = next(d.of_tokens[name] for d in images if name in d.of_tokens)
        rows = example.new_zeros(len(images), width, *example.shape[2:])
        for row, document in zip(rows, images, strict=True):
            if name in document.of_tokens:
                row[: document.of_tokens[name].shape[1]] = document.of_tokens[name][0]
        arguments[name] = rows
    for name in dict.fromkeys(name for document in images for name in document.of_images):
        arguments[name] = concatenated([d.of_images[name] for d in images if name in d.of_images])
    return arguments


def concatenated(tensors: Sequence[Tensor]) -> Tensor:
    """Tensors along axis 0, the other axes padded to the largest."""
    sizes = [max(t.shape[axis] for t in tensors) for axis in range(1, tensors[0].ndim)]
    missing = [[n - size for n, size in zip(sizes, t.shape[1:], strict=True)] for t in tensors]
    padded = [
        pad(t, [end for n in reversed(short) for end in (0, n)]) if any(short) else t
        for t, short in zip(tensors, missing, strict=True)
    ]
    return torch.cat(padded)


def spans(pattern: AttentionPattern, batch: Batch, in_span: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The number of the run of consecutive `in_span` tokens that each of them is in; -1 elsewhere.

    A run ends with the block before an answer: those of its tokens that share a block with a later maskable token are
    in none. In decoding they are not in the cache yet when earlier ones are written into it."""
    column = torch.arange(in_span.shape[1]).expand_as(in_span)
    first_of_block = pattern.block_columns(batch)
    last_maskable = torch.full_like(column, -1).scatter_reduce_(
        1, first_of_block, torch.where(batch.maskable, column, -1), "amax"
    )
    ends = column < last_maskable.gather(1, first_of_block)
    # Documents that begin with an image are apart by themselves: none sees another.
    return runs(in_span & ~ends)


def runs(chosen: Bool[Tensor, "B L"]) -> Int[Tensor, "B L"]:
    """The number of the run of consecutive `chosen` tokens that each of them is in; -1 elsewhere."""
    begins = chosen.clone()
    begins[:, 1:] &= ~chosen[:, :-1]
    return torch.where(chosen, begins.cumsum(1) - 1, -1)
