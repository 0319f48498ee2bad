"""Predicates → the `attention_mask` of a Hugging Face forward: a dense mask, a `BandMask` (block-sparse, CPU) or a
FlexAttention `BlockMask` (block-sparse, CUDA).

Models with sliding-window layers get one mask per layer type, so that their windows are preserved.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Int
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dlm.attention.base import AttentionPattern
from dlm.attention.compilation import compiled
from dlm.types import Rows

TILE = 128  # rows and columns of a FlexAttention tile
PAIRS = 2**26  # rows x columns of which the predicate is evaluated at once: 64 MiB of booleans
CHUNK = 64  # query rows of a band: the fastest of 32, 64 and 128 on CPUs


@dataclass(frozen=True)
class Band:
    """Consecutive query rows and the ranges of columns that any of them sees. `visible` is the dense mask of these rows
    over these columns, side by side; None: every row sees every column."""

    rows: slice
    columns: list[slice]
    visible: Bool[Tensor, "B 1 Q K"] | None


class BandMask(BlockMask):
    """A mask of [B S] rows over themselves as bands of rows, for `dlm.attention.block_sparse`.

    Transformers passes a `BlockMask` to the layers unchanged. This class inherits the interface without the tensors, so
    that an attention function that does not know bands fails instead of adding or ignoring a tensor silently.
    """

    ndim = 4  # GPT-2 reads it

    def __init__(self, shape: tuple[int, int, int, int], bands: list[Band]):
        self.size, self.bands = shape, bands

    @property
    def shape(self) -> tuple[int, int, int, int]:
        """(B, 1, S, S)"""
        return self.size

    def __repr__(self) -> str:
        return f"BandMask(shape={self.shape}, {len(self.bands)} bands)"

    __str__ = __repr__


def dense_mask(pattern: AttentionPattern, q: Rows, k: Rows, window: int | None = None) -> Bool[Tensor, "B 1 Q K"]:
    """True = attend. With a sliding `window`, a row also sees nothing `window` or more positions away, in either
    direction: the parent's window, mirrored where the pattern looks ahead."""
    q, k = q[:, :, None], k[:, None, :]
    visible = pattern.visible(q, k)
    if window is not None:
        visible = visible & ((q.position - k.position).abs() < window)
    return visible[:, None]


def block_mask(
    pattern: AttentionPattern, q: Rows, k: Rows, window: int | None = None, in_steps: bool = False
) -> BlockMask:
    """The `BlockMask` of [B Q] rows over [B K] columns, both padded to whole tiles by the kernel.

    The predicate is evaluated for many bands of rows at once to find the empty, full and partial tiles. Unlike
    `create_block_mask`, this stores nothing of size Q x K for long rows, and never waits for the host. `in_steps`: for
    the steps of a decoding, which have few shapes, that is compiled.
    """
    sizes = q.position.shape[1], k.position.shape[1]
    # Padding rows and padding columns belong to two documents of their own.
    q_padded, k_padded = padded(q, -2), padded(k, -3)

    def mask_mod(b, h, q_idx, kv_idx):
        row, column = q_padded[b, q_idx], k_padded[b, kv_idx]
        visible = pattern.visible(row, column)
        return visible if window is None else visible & ((row.position - column.position).abs() < window)

    find = compiled(tiles) if in_steps else tiles
    mask = BlockMask.from_kv_blocks(
        *find(pattern, q_padded, k_padded, window),
        BLOCK_SIZE=TILE,
        mask_mod=mask_mod,
        seq_lengths=sizes,
        compute_q_blocks=q is k,  # which only the backward reads; decoding has none
    )
    mask.ndim = BandMask.ndim
    return mask


def tiles(
    pattern: AttentionPattern, q: Rows, k: Rows, window: int | None
) -> tuple[Int[Tensor, "B 1 R"], Int[Tensor, "B 1 R C"], Int[Tensor, "B 1 R"], Int[Tensor, "B 1 R C"]]:
    """The tiles of [B Q] rows over [B K] columns, both whole tiles, that have visible and hidden pairs, and those that
    have only visible ones: numbers and indices (see `compressed`). About `PAIRS` pairs are evaluated at once, and at
    least a band of rows."""
    batch, height = q.position.shape
    rows = max(PAIRS // (batch * k.position.shape[1] * TILE), 1) * TILE
    any_of, all_of = [], []
    for start in range(0, height, rows):
        visible = dense_mask(pattern, q[:, start : start + rows], k, window)
        by_tile = visible.unflatten(3, (-1, TILE)).unflatten(2, (-1, TILE))
        any_of.append(by_tile.any(-1).any(3))
        all_of.append(by_tile.all(-1).all(3))
    any_visible, all_visible = torch.cat(any_of, 2), torch.cat(all_of, 2)
    return *compressed(any_visible & ~all_visible), *compressed(all_visible)


def padded(rows: Rows, document: int) -> Rows:
    """The rows padded to a whole number of tiles; the padding belongs to `document`."""
    size = rows.position.shape[1]
    whole = rows.map(lambda t: torch.nn.functional.pad(t, (0, -size % TILE)))
    whole.document[:, size:] = document
    return whole


def band_mask(pattern: AttentionPattern, rows: Rows, window: int | None = None) -> BandMask:
    """The `BandMask` of [B S] rows over themselves. Short rows form a single band, so that they cost no more than with
    a dense mask; for longer ones nothing of size S x S is computed."""
    batch, size = rows.position.shape
    height = size if size <= 2 * CHUNK else CHUNK
    if all((t == t[:1]).all() for t in vars(rows).values() if t is not None):
        rows = rows[:1]  # one mask broadcasts over a batch of equal layouts
    bands = []
    for start in range(0, size, height):
        visible = dense_mask(pattern, rows[:, start : start + height], rows, window)
        columns = ranges(visible.flatten(0, 2).any(0), CHUNK)
        visible = torch.cat([visible[..., c] for c in columns], -1)
        bands.append(Band(slice(start, start + height), columns, None if visible.all() else visible))
    return BandMask((batch, 1, size, size), bands)


def ranges(seen: Bool[Tensor, " S"], gap: int) -> list[slice]:
    """The ranges of columns that are `seen`. Ranges with fewer than `gap` columns between them are merged."""
    columns = seen.nonzero()[:, 0]
    apart = columns.diff() > gap
    first = columns[torch.nn.functional.pad(apart, (1, 0), value=True)]
    last = columns[torch.nn.functional.pad(apart, (0, 1), value=True)]
    return [slice(a, b + 1) for a, b in zip(first.tolist(), last.tolist(), strict=True)]


def compressed(tiles: Bool[Tensor, "B 1 R C"]) -> tuple[Int[Tensor, "B 1 R"], Int[Tensor, "B 1 R C"]]:
    """The number of set columns of each tile row, and the column indices, those of the set ones first."""
    order = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1).to(torch.int32), order.to(torch.int32)


def attention_masks(
    pattern: AttentionPattern,
    q: Rows,
    k: Rows,
    layer_types: dict[str, int | None],
    implementation: str,
    tiled: bool = False,
) -> Any:
    """The `attention_mask` argument for rows `q` [B Q] over columns `k` [B K]: one mask, or a dict with one per layer
    type if `layer_types` ({type: window or None}) has several.

    `eager` attention adds its mask, so it gets 0 and -inf instead of booleans. `block_sparse` has its own masks for
    rows over themselves. In decoding, where `q` is short and has many shapes, it takes a dense mask; with `tiled`, for
    compiled layers, a `BlockMask`, with which it reads only the used tiles of the cache."""

    def build(window: int | None) -> Any:
        if implementation == "block_sparse":
            if q is k and not q.position.is_cuda:
                return band_mask(pattern, q, window)
            if q is k or tiled:
                return block_mask(pattern, q, k, window, in_steps=q is not k)
        if implementation == "flex_attention":
            return block_mask(pattern, q, k, window)
        mask = dense_mask(pattern, q, k, window)
        if implementation == "eager":
            return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
        return mask

    masks = {name: build(window) for name, window in layer_types.items()}
    return masks if len(masks) > 1 else next(iter(masks.values()))
