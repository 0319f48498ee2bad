"""Estimates the memory of a training step before it runs.

The decoder's forward is traced on meta tensors, which have shapes but no data, and the tensors that autograd would save
for the backward are added up. The estimate therefore holds for any architecture and takes no memory itself.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AttentionInterface, AttentionMaskInterface, PreTrainedModel
from transformers.masking_utils import sdpa_mask

from dlm.attention import block_sparse
from dlm.attention.masks import BandMask, band_mask
from dlm.conversion.pieces import rows_of_piece
from dlm.errors import one_line
from dlm.model.denoiser import Denoiser
from dlm.model.readout import chunk_bytes
from dlm.model.sharding import sharded_layers
from dlm.model.tower import vision_weights
from dlm.model.vision import reads_images
from dlm.trainable.quantised import packed_bytes
from dlm.types import Batch, Noised, Rows

GB = 1e9
TRACED = "traced"  # the name of an attention function that only saves for the backward what the kernels save
# The logits of a chunk in the model's type and in float32, their log-softmax, and the gradients of both.
LOGITS_COPIES = 5
# For fragmentation of the allocator and the temporary tensors of single operations.
SLACK = 1.1
PRECISIONS = {"bf16": torch.bfloat16, "16": torch.float16, "64": torch.float64}


class Unknown(Exception):
    """The memory of a model cannot be estimated before it runs."""


@dataclass(frozen=True)
class Estimate:
    """Bytes at the peak of one training step, by kind of tensor."""

    weights: int
    gradients: int
    optimizer: int
    activations: int
    head: int

    @property
    def total(self) -> int:
        return int(SLACK * sum(asdict(self).values()))

    def __str__(self) -> str:
        parts = ", ".join(f"{name} {size / GB:.2f}" for name, size in asdict(self).items())
        return f"{self.total / GB:.2f} GB ({parts})"


@dataclass(frozen=True)
class Step:
    """A training step on rows of `length` tokens with `views` noisy views each, on one of `processes` devices, over
    which the layers are `sharded` or not. `precision` is the name that Lightning uses, such as `bf16-mixed`. The
    parameters whose `id`s are `quantised` will be in four bits. `images` are the bytes that autograd keeps of the
    images of a row, without and with activation checkpointing."""

    length: int
    views: int
    precision: str
    device: torch.device
    processes: int = 1
    sharded: bool = False
    quantised: frozenset[int] = frozenset()
    images: tuple[int, int] = (0, 0)

    def activations(self, model: PreTrainedModel) -> torch.dtype:
        """The type of the activations."""
        return PRECISIONS.get(self.precision.split("-")[0]) or model.dtype

    def stored(self, parameter: Tensor, activations: torch.dtype) -> int:
        """The bytes of a parameter, and so those of its gradient and of each of its moments. Under autocast it keeps
        its type; otherwise the whole model is cast, but for what is in four bits."""
        if id(parameter) in self.quantised:
            return packed_bytes(parameter.numel())
        return parameter.nbytes if self.is_mixed else parameter.numel() * activations.itemsize

    def copied(self, parameter: Tensor, activations: torch.dtype) -> int:
        """The bytes of the copy, in the type of the activations, that autocast makes of a matrix."""
        is_read = self.is_mixed and id(parameter) not in self.quantised
        has_copy = is_read and parameter.ndim > 1 and parameter.dtype != activations
        return has_copy * parameter.numel() * activations.itemsize

    def dequantised(self, parameter: Tensor, activations: torch.dtype) -> int:
        """The bytes that a matrix in four bits takes while it is multiplied: its values, and those that autocast makes
        of them."""
        sizes = {parameter.dtype.itemsize, activations.itemsize}
        return sum(sizes) * parameter.numel() if id(parameter) in self.quantised else 0

    @property
    def is_mixed(self) -> bool:
        return self.precision.endswith("mixed")


@dataclass(frozen=True)
class Plan:
    """Whether to use activation checkpointing, and the memory expected then."""

    checkpointing: bool
    estimate: Estimate


def plan(
    denoiser: Denoiser, step: Step, batch_size: int, limit: int, checkpointing: bool | None = None, pieces: int = 1
) -> Plan:
    """Decide whether a step on `batch_size` rows, in `pieces`, needs activation checkpointing to stay below `limit`
    bytes. `checkpointing` fixes the answer beforehand.

    Raises `ValueError`, naming the fewest pieces and the largest batch that fit, if the step cannot fit, and `Unknown`
    if it cannot be estimated.
    """
    options = [False, True] if checkpointing is None else [checkpointing]
    rows = rows_of_piece(batch_size, pieces)

    def fitting_plan(rows: int, in_pieces: bool) -> Plan | None:
        plans = (Plan(option, estimate(denoiser, step, rows, option, in_pieces)) for option in options)
        return next((p for p in plans if p.estimate.total <= limit), None)

    def most_rows(in_pieces: bool) -> int:  # memory grows with the rows, so bisection finds the most that fit
        return bisect_left(range(1, batch_size), True, key=lambda rows: fitting_plan(rows, in_pieces) is None)

    if fitting := fitting_plan(rows, pieces > 1):
        return fitting
    need = estimate(denoiser, step, rows, options[-1], pieces > 1)
    batch_rows, piece_rows = most_rows(False), most_rows(True)
    same_run = (
        f"runtime.pieces={math.ceil(batch_size / piece_rows)} (the same run, piece by piece) or " if piece_rows else ""
    )
    remedy = (
        f"set {same_run}data.batch_size={batch_rows} trainer.accumulate={math.ceil(batch_size / batch_rows)}"
        if batch_rows
        else "not even data.batch_size=1 does: choose a shorter data.length, trainable=lora or a smaller model"
    )
    raise ValueError(
        f"data.batch_size {batch_size} does not fit: a step needs about {need}, and {limit / GB:.2f} GB are "
        f"available: {remedy} (runtime.memory_gb=N overrules what was found available)"
    )


def estimate(denoiser: Denoiser, step: Step, batch_size: int, checkpointing: bool, in_pieces: bool = False) -> Estimate:
    """The bytes of a step on rows whose tokens are all masked, which is the most that a batch can need. With several
    pieces, accumulated gradients are held in addition; DDP buckets add another copy. Of sharded layers, two are whole
    at a time, one of them gathered ahead, and one with its gradients; their copies for autocast all live until the end
    of the forward. Of matrices in four bits, one has its values at a time."""
    model = denoiser.model
    dtype = step.activations(model)
    layers_of = sharded_layers(model) if step.sharded else []
    in_layers = {id(p) for layer in layers_of for p in layer.parameters()}

    def held(parameters: Iterable[Tensor]) -> int:
        return sum(step.stored(p, dtype) // (step.processes if id(p) in in_layers else 1) for p in parameters)

    trained = [p for p in model.parameters() if p.requires_grad]
    weights = held(model.parameters()) + sum(step.copied(p, dtype) for p in model.parameters())
    trainable = held(trained)
    weights += max((step.dequantised(p, dtype) for p in model.parameters()), default=0)
    if layers_of:
        largest = max(sum(step.stored(p, dtype) for p in layer.parameters()) for layer in layers_of)
        weights, gathered_gradients = weights + 2 * largest, largest
    else:
        gathered_gradients = trainable * (step.processes > 1)
    saved, boundary = traced(denoiser, step, batch_size)
    layers = model.config.get_text_config().num_hidden_layers
    if checkpointing:  # the inputs of all layers, and the activations of one
        saved = layers * boundary + saved // layers
    saved += batch_size * step.images[checkpointing]
    output = model.get_output_embeddings().weight
    chunk = min(batch_size * step.views * step.length * denoiser.row_bytes, chunk_bytes(step.device))
    head = LOGITS_COPIES * chunk + output.requires_grad * output.numel() * 4
    gradients = trainable * (1 + in_pieces) + gathered_gradients
    return Estimate(weights, gradients, 2 * trainable, saved, head)


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


def available(device: torch.device) -> int:
    """The bytes that this process may hold in total: those free on the device and those it already holds."""
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
    return psutil.virtual_memory().available + psutil.Process().memory_info().rss


AttentionInterface.register(TRACED, traced_attention)
AttentionMaskInterface.register(TRACED, sdpa_mask)
