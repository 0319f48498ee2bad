"""Drop positions that no loss depends on: an exact saving, for any pattern.

    B rows of a batch        S columns of a row        C cells of a row        D documents

A position is needed if it scores a token or if a needed position sees it. So the last clean block of a document, noisy
blocks without a masked token (prompts), and documents of context alone are dropped. (Efficient-DLM trains on 2L
positions; this leaves 2L - block_size of a document of L tokens, and far fewer of one that is mostly prompt.) The rest
of each document is packed into fewer rows. The predicate depends on documents and positions, not on columns, so nothing
else changes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.attention.masks import TILE
from dlm.types import ModelInputs, Rows

SHAPES = 8  # widths of rows, each of which is compiled once


def trim(inputs: ModelInputs, few_shapes: bool = False) -> ModelInputs:
    """The inputs, which must be on the CPU, without the positions that are not needed; unchanged if that saves nothing.
    Logits, loss and gradients are the same. The rows are as wide as the longest document. With `few_shapes`, for
    kernels that are compiled for each shape, there are as many rows as before, of one of `SHAPES` widths."""
    keep = needed(inputs)
    if not keep.any():  # nothing is masked, and a forward needs at least one position
        keep[0, 0] = True
    row, column = keep.nonzero(as_tuple=True)
    # Documents in order of their first column; within one, columns keep their order.
    serial = row * keep.shape[1] + inputs.rows.document[keep]
    document, size = serial.unique(return_inverse=True, return_counts=True)[1:]
    bins, offset, height, width = packing(size.tolist(), keep.shape, few_shapes)
    if height * width >= keep.numel():  # every position is needed, or padding would take up the saving
        return inputs
    order = document.argsort(stable=True)
    start = size.cumsum(0) - size
    rank = torch.empty_like(document)
    rank[order] = torch.arange(len(document)) - start[document[order]]
    target = bins[document] * width + offset[document] + rank

    def packed(values: Tensor, filler: int) -> Tensor:
        out = torch.full((height * width,), filler, dtype=values.dtype)
        out[target] = values[row, column] if values.ndim == 2 else values
        return out.view(height, width)

    new_index = torch.full((keep.numel(),), -1)
    new_index[row * keep.shape[1] + column] = target
    rows = replace(inputs.rows.map(lambda t: packed(t, 0)), document=packed(document, -1))
    return replace(
        inputs,
        input_ids=packed(inputs.input_ids, 0),
        position_ids=packed(inputs.position_ids, 0),
        rows=rows,
        scored=new_index[inputs.scored],
        source=None if inputs.source is None else packed(inputs.source, -1),
    )


def needed(inputs: ModelInputs) -> Bool[Tensor, "B S"]:
    """Which positions the scored hidden states depend on: those positions, and all that they see, directly or through
    others."""
    cell, first = cells(inputs.pattern, inputs.rows)
    heads = inputs.rows.map(lambda t: t.gather(1, first))
    sees = inputs.pattern.reaches(heads[:, :, None], heads[:, None, :])
    size = cell.shape[1]
    row = inputs.scored // size
    needed_cells = torch.zeros_like(first, dtype=torch.bool)
    needed_cells[row, cell[row, inputs.scored % size]] = True
    while True:
        grown = needed_cells | (sees & needed_cells[:, :, None]).any(1)
        if torch.equal(grown, needed_cells):
            break
        needed_cells = grown
    return needed_cells.gather(1, cell) & (inputs.rows.document >= 0)


def cells(pattern: AttentionPattern, rows: Rows) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B C"]]:
    """The cell of every column, and the first column of every cell. A cell is a run of columns with the same envelope:
    a block of one document in one stream, its part in a span or between spans, or a single column if the pattern is not
    `blockwise`."""
    unit = pattern.block(rows) if pattern.blockwise else rows.position
    continues = torch.ones_like(rows.clean)
    for value in (rows.clean, rows.document, unit, *(v for v in (rows.view, rows.span) if v is not None)):
        continues[:, 1:] &= value[:, 1:] == value[:, :-1]
    begins = ~continues
    begins[:, 0] = True
    cell = begins.cumsum(1) - 1
    first = torch.zeros(len(cell), int(cell.max()) + 1, dtype=torch.long)
    row, column = begins.nonzero(as_tuple=True)
    first[row, cell[row, column]] = column
    return cell, first


def packing(
    sizes: list[int], shape: tuple[int, int], few_shapes: bool
) -> tuple[Int[Tensor, " D"], Int[Tensor, " D"], int, int]:
    """Pack documents of these sizes from a batch of `shape`: the row and the first column of each, and the height and
    width of the new batch."""
    if not few_shapes:
        width = max(sizes)
        return *first_fit(sizes, width), width
    rows, widest = shape
    quantum = -(-widest // (SHAPES * TILE)) * TILE
    for width in range(-(-max(sizes) // quantum) * quantum, widest + quantum, quantum):
        bins, offset, height = first_fit(sizes, width)
        if height <= rows:
            break
    return bins, offset, rows, width


def first_fit(sizes: list[int], width: int) -> tuple[Int[Tensor, " D"], Int[Tensor, " D"], int]:
    """Pack documents into rows of `width` by first fit, the largest first: the row and the first column of each, and
    the number of rows."""
    filled: list[int] = []  # the tokens in each row
    bins, offset = [0] * len(sizes), [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        row = next((n for n, used in enumerate(filled) if used + sizes[i] <= width), len(filled))
        if row == len(filled):
            filled.append(0)
        bins[i], offset[i] = row, filled[row]
        filled[row] += sizes[i]
    return torch.tensor(bins), torch.tensor(offset), len(filled)
