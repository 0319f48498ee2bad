"""Leave out of a forward what nobody reads: an exact saving, for any pattern.

A row is needed where it scores a masked token, or where a needed row sees it. So the last clean block of a document,
noisy blocks without a masked token (prompts), and documents that are all context go (Efficient-DLM trains on 2L rows;
this leaves 2L - block_size of a document of L tokens, and far fewer of one that is mostly prompt). What stays of each
document is packed anew into fewer rows; the predicate knows documents and positions, not columns, so nothing else
changes.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.attention.masks import TILE
from dlm.types import ModelInputs, Rows

SHAPES = 8  # torch compiles this many of a function before it gives up


def trim(inputs: ModelInputs, few_shapes: bool = False) -> ModelInputs:
    """The same forward on the needed rows alone (on the CPU), or unchanged where that saves nothing; logits, loss and
    gradients are those of the whole. As wide as the longest document, or, with `few_shapes`, of as many rows as before
    and one of `SHAPES` widths: for kernels that are compiled for a shape."""
    keep = needed(inputs)
    if not keep.any():  # nothing is masked, and a forward has at least one row
        keep[0, 0] = True
    row, column = keep.nonzero(as_tuple=True)
    # Documents in order of their first column; within one, columns keep their order.
    serial = row * keep.shape[1] + inputs.rows.document[keep]
    document, size = serial.unique(return_inverse=True, return_counts=True)[1:]
    bins, offset, height, width = packing(size.tolist(), keep.shape, few_shapes)
    if height * width >= keep.numel():  # every row is needed, or what is saved is lost again as padding
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

    where = torch.full((keep.numel(),), -1)
    where[row * keep.shape[1] + column] = target
    rows = replace(inputs.rows.map(lambda t: packed(t, 0)), document=packed(document, -1))
    return ModelInputs(packed(inputs.input_ids, 0), rows.position, rows, where[inputs.scored], inputs.pattern)


def needed(inputs: ModelInputs) -> Bool[Tensor, "B S"]:
    """The rows that scored rows are, see, and see through others."""
    cell, first = cells(inputs.pattern, inputs.rows)
    heads = inputs.rows.map(lambda t: t.gather(1, first))
    sees = inputs.pattern.reaches(heads[:, :, None], heads[:, None, :])
    size = cell.shape[1]
    row = inputs.scored // size
    need = torch.zeros_like(first, dtype=torch.bool)
    need[row, cell[row, inputs.scored % size]] = True
    while True:
        grown = need | (sees & need[:, :, None]).any(1)
        if torch.equal(grown, need):
            break
        need = grown
    return need.gather(1, cell) & (inputs.rows.document >= 0)


def cells(pattern: AttentionPattern, rows: Rows) -> tuple[Int[Tensor, "B S"], Int[Tensor, "B C"]]:
    """The cell of every row, and the first row of every cell: what a pattern treats alike, a block of one document in
    one stream, or a single row where it looks at positions within blocks."""
    unit = pattern.block(rows) if pattern.blockwise else rows.position
    change = torch.ones_like(rows.clean)
    for value in (rows.clean, rows.document, unit, *([] if rows.view is None else [rows.view])):
        change[:, 1:] &= value[:, 1:] == value[:, :-1]
    change = ~change
    change[:, 0] = True
    cell = change.cumsum(1) - 1
    first = torch.zeros(len(cell), int(cell.max()) + 1, dtype=torch.long)
    row, column = change.nonzero(as_tuple=True)
    first[row, cell[row, column]] = column
    return cell, first


def packing(
    sizes: list[int], shape: tuple[int, int], few_shapes: bool
) -> tuple[Int[Tensor, " D"], Int[Tensor, " D"], int, int]:
    """Where documents go that came in `shape`: the row and the first column of each, and the shape they need."""
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
    """Pack documents into rows of `width`, the largest first: the row and the first column of each, and the number of
    rows."""
    filled: list[int] = []
    bins, offset = [0] * len(sizes), [0] * len(sizes)
    for i in sorted(range(len(sizes)), key=lambda i: -sizes[i]):
        found = next((n for n, used in enumerate(filled) if used + sizes[i] <= width), len(filled))
        if found == len(filled):
            filled.append(0)
        bins[i], offset[i] = found, filled[found]
        filled[found] += sizes[i]
    return torch.tensor(bins), torch.tensor(offset), len(filled)
