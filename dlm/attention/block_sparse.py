"""Attention that computes only the visible part of the matrix: transformers' `attn_implementation="block_sparse"`.

The type of the mask (`dlm.attention.masks`) selects the kernel. For a `BandMask` it is SDPA on the columns that each
band of rows sees (training on a CPU), for any other `BlockMask` compiled FlexAttention (training on a GPU, and compiled
decoding), and for a dense mask, as in other decoding, SDPA. All are exact. Keys are not repeated for the query heads
that share them, except for a dense mask on CUDA, where SDPA needs it.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn.attention.flex_attention import BlockMask, flex_attention
from torch.nn.functional import scaled_dot_product_attention
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

from dlm.attention.compilation import allow_versions
from dlm.attention.masks import TILE, Band, BandMask

NAME = "block_sparse"
FORWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu
BACKWARD = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu_backward


def block_sparse_attention(
    module: nn.Module,
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K E"],
    attention_mask: BlockMask | Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B Q H E"], None]:
    """An attention function with the interface of transformers. Raises `ValueError` for options that it does not
    support, and for a mask that does not fit the queries and keys."""
    for name in ("softcap", "s_aux", "position_bias"):
        if kwargs.get(name) is not None:
            raise ValueError(f"attn_implementation={NAME} does not support {name}: use eager")
    if isinstance(attention_mask, Tensor) and query.device.type == "cpu":
        # With a mask, transformers repeats the keys and values of the whole cache, which the CPU kernel does not need.
        output = scaled_dot_product_attention(
            query, key, value, attention_mask, dropout_p=dropout, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2).contiguous(), None
    if not isinstance(attention_mask, BlockMask):
        return sdpa_attention_forward(
            module, query, key, value, attention_mask, dropout=dropout, scaling=scaling, **kwargs
        )
    mask_size, size = tuple(attention_mask.shape[2:]), (query.shape[2], key.shape[2])
    if mask_size != size:
        raise ValueError(f"a mask of {mask_size} rows and columns does not fit attention of {size}")
    if isinstance(attention_mask, BandMask):
        return band_attention(query, key, value, attention_mask, dropout, scaling), None
    if dropout:
        raise ValueError(f"attn_implementation={NAME} has no attention dropout on CUDA: use sdpa")
    # Under autocast, normalised queries and keys are wider than the values; FlexAttention requires one type.
    query, key = query.to(value.dtype), key.to(value.dtype)
    # Called directly: the wrapper of transformers repeats the keys if the number of heads is no power of two. What is
    # being compiled already takes FlexAttention in; a call of `torch.compile` would break its graph.
    flex = flex_attention if torch.compiler.is_compiling() else compiled_flex_attention()
    options = kernel_options(query.shape[2], query.shape[1] // key.shape[1])
    output = flex(query, key, value, block_mask=attention_mask, scale=scaling, enable_gqa=True, kernel_options=options)
    return output.transpose(1, 2).contiguous(), None


def kernel_options(num_queries: int, heads_per_key: int) -> dict[str, bool] | None:
    """The options of FlexAttention for `num_queries` rows and `heads_per_key` query heads for each key head, None for
    its own choice. For fewer than 128 rows and a power of two it takes a kernel that puts the rows of all these heads
    into one tile. Where they do not fit into a tile of the mask, that has no valid configuration (torch 2.11 to 2.13).
    """
    is_power_of_two = heads_per_key & (heads_per_key - 1) == 0
    packed = 1 << (num_queries * heads_per_key - 1).bit_length()
    if num_queries < 128 and is_power_of_two and packed > TILE:
        return {"FORCE_USE_FLEX_ATTENTION": True}
    return None


def band_attention(
    query: Float[Tensor, "B H S D"],
    key: Float[Tensor, "B G S D"],
    value: Float[Tensor, "B G S E"],
    mask: BandMask,
    dropout: float,
    scaling: float | None,
) -> Float[Tensor, "B S H E"]:
    """SDPA band by band, each on the columns that it sees."""
    if not dropout and key.shape[-1] == value.shape[-1]:  # what the kernel can do
        query, key = query.to(value.dtype), key.to(value.dtype)
        return BandAttention.apply(query, key, value, mask, scaling).transpose(1, 2)
    outputs = [
        scaled_dot_product_attention(
            query[:, :, band.rows],
            side_by_side(key, band),
            side_by_side(value, band),
            band.visible,
            dropout_p=dropout,
            scale=scaling,
            enable_gqa=True,
        ).transpose(1, 2)
        for band in mask.bands
    ]
    return torch.cat(outputs, 1)


def side_by_side(x: Float[Tensor, "B G S D"], band: Band) -> Float[Tensor, "B G K D"]:
    """The keys or values that a band of rows sees; a copy only if they form several ranges."""
    parts = [x[:, :, columns] for columns in band.columns]
    return torch.cat(parts, 2) if len(parts) > 1 else parts[0]


class BandAttention(torch.autograd.Function):
    """The kernel behind SDPA on a CPU, band by band. Autograd would save the output twice and every band's copy of its
    keys and values, and would allocate a gradient of all keys and values for every band."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: BandMask, scaling: float | None) -> Tensor:
        batch, heads, size, _ = query.shape
        output = query.new_empty(batch, size, heads, value.shape[-1]).transpose(1, 2)  # as the next layer reads it
        normalisers = []
        for band in mask.bands:
            output[:, :, band.rows], normaliser = FORWARD(
                query[:, :, band.rows],
                side_by_side(key, band),
                side_by_side(value, band),
                attn_mask=addend(band, query.dtype),
                scale=scaling,
            )
            normalisers.append(normaliser)
        ctx.save_for_backward(query, key, value, output, torch.cat(normalisers, 2))
        ctx.mask, ctx.scaling = mask, scaling
        return output

    @staticmethod
    def backward(ctx, grad_output: Tensor) -> tuple[Tensor | None, ...]:
        query, key, value, output, normalisers = ctx.saved_tensors
        grad_query, grad_key, grad_value = torch.empty_like(query), torch.zeros_like(key), torch.zeros_like(value)
        for band in ctx.mask.bands:
            rows = (slice(None), slice(None), band.rows)
            grad_query[rows], *grad_columns = BACKWARD(
                grad_output[rows],
                query[rows],
                side_by_side(key, band),
                side_by_side(value, band),
                output[rows],
                normalisers[rows],
                0.0,
                False,
                attn_mask=addend(band, query.dtype),
                scale=ctx.scaling,
            )
            for total, grad_band in zip((grad_key, grad_value), grad_columns, strict=True):
                sizes = [columns.stop - columns.start for columns in band.columns]
                for columns, part in zip(band.columns, grad_band.split(sizes, 2), strict=True):
                    total[:, :, columns] += part
        return grad_query, grad_key, grad_value, None, None


def addend(band: Band, dtype: torch.dtype) -> Float[Tensor, "B 1 Q K"] | None:
    """The mask that the kernel adds to a band's scores: 0 where a row sees a column, -inf elsewhere."""
    if band.visible is None:
        return None
    return torch.zeros(band.visible.shape, dtype=dtype).masked_fill_(~band.visible, -torch.inf)


def loaded_as(name: str) -> str:
    """The implementation with which to load a model before it gets `name`. Transformers refuses SDPA for models that
    need soft-capping or sinks; loading with SDPA makes it refuse `block_sparse` as well."""
    return "sdpa" if name == NAME else name


def set_implementation(model: PreTrainedModel, name: str) -> PreTrainedModel:
    """Give a model that was loaded as `loaded_as(name)` the implementation `name`. A class that does not look up its
    attention function keeps SDPA."""
    if name == NAME and model._can_set_attn_implementation():
        model.set_attn_implementation(NAME)
    return model


@cache
def compiled_flex_attention():
    """FlexAttention, compiled once per process: uncompiled it computes the whole matrix of scores."""
    allow_versions()
    return torch.compile(flex_attention)


AttentionInterface.register(NAME, block_sparse_attention)
AttentionMaskInterface.register(NAME, sdpa_mask)  # the parent's own forward, without a mask from here, stays causal
