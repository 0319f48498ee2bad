"""What autograd saves in a decoder's forward for the backward, by its names and shapes.

The forward is traced on meta tensors, which have shapes but no data, and the tensors that autograd would save are added
up. This holds for any architecture and takes no memory itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from dlm.attention import block_sparse
from dlm.attention.masks import BandMask, band_mask
from dlm.errors import one_line
from dlm.model.denoiser import Denoiser
from dlm.model.tower import vision_weights
from dlm.model.vision import reads_images
from dlm.trainer.step import Step
from dlm.types import Batch, Noised, Rows

TRACED = "traced"  # the name of an attention function that only saves for the backward what the kernels save


class Unknown(Exception):
    """The memory of a model cannot be estimated before it runs."""


def traced(denoiser: Denoiser, step: Step, batch_size: int) -> tuple[int, int]:
    """The bytes that autograd saves in the decoder's forward, and the bytes of the hidden states between two layers.
    Raises `Unknown` if the decoder cannot be traced."""
    model = denoiser.model
    decoder, dtype = model.get_decoder(), step.activations(model)
    rows = layout(denoiser, step)
    size = rows.position.shape[1]
    state = {
        name: torch.empty_like(t, device="meta", dtype=dtype if t.is_floating_point() else None).requires_grad_(
            t.requires_grad
        )
        for name, t in [*decoder.named_parameters(), *decoder.named_buffers()]
    }
    ids = torch.empty(batch_size, size, dtype=torch.long, device="meta")
    reads: dict[str, Tensor] = {"input_ids": ids}
    if reads_images(model.config) and any(p.requires_grad for p in vision_weights(model)):  # through all the layers
        width = model.get_input_embeddings().weight.shape[1]
        reads = {"inputs_embeds": torch.empty(batch_size, size, width, dtype=dtype, device="meta", requires_grad=True)}
    mask = mask_like(denoiser, rows, batch_size, step.device)
    masks = mask if len(denoiser.layer_types) == 1 else dict.fromkeys(denoiser.layer_types, mask)
    arguments = {**reads, "position_ids": ids, "attention_mask": masks, "use_cache": False}
    with saved_tensors(model) as saved, GroupedProductOfAnyType():
        try:
            torch.func.functional_call(decoder, state, kwargs=arguments)
        except Exception as error:  # any architecture may raise anything on tensors without values
            raise Unknown(f"{type(model).__name__} does not run without values: {one_line(error)}") from error
    of_weights = {t.untyped_storage()._cdata for t in state.values()}
    storages = {t.untyped_storage()._cdata: t.untyped_storage().nbytes() for t in saved}
    total = sum(nbytes for storage, nbytes in storages.items() if storage not in of_weights)
    return total, batch_size * size * model.config.get_text_config().hidden_size * dtype.itemsize


def layout(denoiser: Denoiser, step: Step) -> Rows:
    """The network's input rows for one row of a batch: a single document, all of it masked."""
    one = torch.zeros(1, step.length, dtype=torch.long)
    batch = Batch(one, one == 0, one, torch.arange(step.length)[None])
    views = one.repeat(1, step.views)
    return denoiser.inputs(batch, Noised(views, views == 0, torch.ones(views.shape)))[0].rows


def mask_like(denoiser: Denoiser, rows: Rows, batch_size: int, device: torch.device) -> BandMask | Tensor:
    """The attention mask that the layers receive: bands (none on a GPU, where the kernel holds the mask), or a dense
    mask [B, 1, K, K] on the meta device."""
    implementation, size = denoiser.model.config._attn_implementation, rows.position.shape[1]
    if implementation in (block_sparse.NAME, "flex_attention"):
        return band_mask(denoiser.pattern, rows) if device.type == "cpu" else BandMask((batch_size, 1, size, size), [])
    dtype = torch.float32 if implementation == "eager" else torch.bool
    return torch.empty(batch_size, 1, size, size, dtype=dtype, device="meta")


@contextmanager
def saved_tensors(model: PreTrainedModel) -> Iterator[list[Tensor]]:
    """A context that lists the tensors which autograd saves. Fused attention is replaced by `traced_attention`, since
    on meta tensors it would not be fused."""
    saved: list[Tensor] = []
    implementation, training = model.config._attn_implementation, model.training

    def save(tensor: Tensor) -> Tensor:
        saved.append(tensor)
        return tensor

    model.train()
    if implementation != "eager":
        model.config._attn_implementation = TRACED
    try:
        with torch.autograd.graph.saved_tensors_hooks(save, lambda tensor: tensor), torch.enable_grad():
            yield saved
    finally:
        model.config._attn_implementation = implementation
        model.train(training)


class GroupedProductOfAnyType(TorchDispatchMode):
    """Allows the products of a mixture of experts on meta tensors of any type; torch takes bfloat16 only."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if func is torch.ops.aten._grouped_mm.default:
            rows, experts = args[:2]  # [M K] and [E K N]
            return rows.new_empty(len(rows), experts.shape[-1])
        return func(*args, **(kwargs or {}))


class SavesLikeKernel(torch.autograd.Function):
    """Saves what an attention kernel saves for its backward: its arguments, its output and a log-sum-exp per row."""

    @staticmethod
    def forward(ctx, query: Tensor, key: Tensor, value: Tensor, mask: BandMask | Tensor) -> Tensor:
        batch, heads, rows, _ = query.shape
        output = query.new_empty(batch, rows, heads, value.shape[-1]).transpose(1, 2)  # the kernels' memory layout
        saved = [query, output, query.new_empty(batch, heads, rows, dtype=torch.float32)]
        if isinstance(mask, BandMask):
            saved += [key, value]
        else:  # with a dense mask, transformers repeats keys and values for all heads
            saved += [mask, *(x.repeat_interleave(heads // x.shape[1], 1) for x in (key, value))]
            saved += [query.new_empty(mask.shape)]  # the mask in the type of the scores, to which kernels add it
        ctx.save_for_backward(*saved)
        return output


def traced_attention(
    module: nn.Module,
    query: Float[Tensor, "B H Q D"],
    key: Float[Tensor, "B G K D"],
    value: Float[Tensor, "B G K E"],
    attention_mask: BandMask | Tensor,
    **kwargs: Any,
) -> tuple[Float[Tensor, "B Q H E"], None]:
    """An attention function, in the interface of transformers, that only allocates what a kernel allocates."""
    return SavesLikeKernel.apply(query, key, value, attention_mask).transpose(1, 2).contiguous(), None


AttentionInterface.register(TRACED, traced_attention)
AttentionMaskInterface.register(TRACED, sdpa_mask)
