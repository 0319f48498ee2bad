"""Predicates → what a Hugging Face forward takes as `attention_mask`: a dense mask or a FlexAttention `BlockMask`.

Models with sliding-window layers get one mask per layer type, so that the windows stay.
"""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor
from torch.nn.attention.flex_attention import BlockMask

from dlm.attention.base import AttentionPattern
from dlm.types import Rows

TILE = 128  # rows and columns of a FlexAttention tile


def dense_mask(pattern: AttentionPattern, q: Rows, k: Rows, window: int | None = None) -> Bool[Tensor, "B 1 Q K"]:
    """True = attend. With a sliding `window`, a row also sees nothing `window` or more positions away, in either
    direction: the parent's window, mirrored where the pattern looks ahead."""
    q, k = q[:, :, None], k[:, None, :]
    visible = pattern.visible(q, k)
    if window is not None:
        visible = visible & ((q.position - k.position).abs() < window)
    return visible[:, None]


def block_mask(pattern: AttentionPattern, rows: Rows, window: int | None = None) -> BlockMask:
    """The `BlockMask` of [B S] rows over themselves, S padded to whole tiles by the kernel.

    Which tiles are empty, full or partial is read off the predicate one band of rows at a time; nothing of size S x S
    is kept and nothing waits for the host, unlike `create_block_mask`.
    """
    batch, size = rows.position.shape
    tiles = -(-size // TILE)
    pad = tiles * TILE - size
    padded = Rows(*(torch.nn.functional.pad(getattr(rows, n), (0, pad)) for n in ("clean", "document", "position")))
    padded.document[:, size:] = -2  # beyond the end: invisible to every row
    some, every = [], []
    for start in range(0, tiles * TILE, TILE):
        band = dense_mask(pattern, padded[:, start : start + TILE], padded, window)
        band = band.view(batch, 1, TILE, tiles, TILE)
        some.append(band.any(-1).any(2))
        every.append(band.all(-1).all(2))
    any_tile, full_tile = torch.stack(some, 2), torch.stack(every, 2)  # [B 1 tiles tiles]
    partial_tile = any_tile & ~full_tile

    def mask_mod(b, h, q_idx, kv_idx):
        q, k = padded[b, q_idx], padded[b, kv_idx]
        visible = pattern.visible(q, k)
        return visible if window is None else visible & ((q.position - k.position).abs() < window)

    return BlockMask.from_kv_blocks(
        *compressed(partial_tile), *compressed(full_tile), BLOCK_SIZE=TILE, mask_mod=mask_mod, seq_lengths=(size, size)
    )


def compressed(tiles: Bool[Tensor, "B 1 R C"]) -> tuple[Tensor, Tensor]:
    """How many columns of each tile row are set, and their indices first."""
    order = tiles.to(torch.int8).argsort(dim=-1, descending=True, stable=True)
    return tiles.sum(-1).to(torch.int32), order.to(torch.int32)


def attention_masks(
    pattern: AttentionPattern, q: Rows, k: Rows, layer_types: dict[str, int | None], implementation: str
) -> Any:
    """The `attention_mask` argument: one mask, or a dict of one per layer type ({type: window}) where there are
    several. `eager` attention adds its mask, so it gets 0 / -inf instead of booleans."""

    def build(window: int | None) -> Any:
        if implementation == "flex_attention":
            return block_mask(pattern, q, window)
        mask = dense_mask(pattern, q, k, window)
        if implementation == "eager":
            return torch.zeros(mask.shape, device=mask.device).masked_fill(~mask, torch.finfo(torch.float32).min)
        return mask

    masks = {name: build(window) for name, window in layer_types.items()}
    return masks if len(masks) > 1 else next(iter(masks.values()))
