"""FLOP: those that a computation executes, counted while it runs, and those that its task needs, in closed form.

A multiplication and an addition are 2 FLOP. A linear map of R rows with P weights costs 2 R P forward and twice that
backward. Attention over `pairs` (row, column) pairs costs 4 x width x pairs forward and 2.5 times that backward (flash
attention recomputes the scores); width is heads x head dimension. Element-wise operations are not counted.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from transformers import PreTrainedModel

from dlm.model.context import listens
from dlm.model.vision import reads_images

LINEAR, ATTENTION = 6, 14  # FLOP of forward and backward, per weight and row, and per width and pair
FORWARD_LINEAR, FORWARD_ATTENTION = 2, 4  # of the forward only
FROZEN_LINEAR = 4  # of the forward and the gradient of the input, per weight and row


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer whose layers are all alike: `linear` is the number of weights in a layer's linear maps, of
    which `key_value` compute keys and values; `head` is the number of weights of the output embedding. Of a model that
    reads images, they are those of its decoder."""

    layers: int
    linear: int
    key_value: int
    width: int
    head: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shape | None:
        """The sizes of a model; None if the closed form does not hold (mixtures of experts, layers that differ)."""
        config = model.config.get_text_config()
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        output, text = model.get_output_embeddings(), model.get_decoder() if reads_images(model.config) else model
        maps = {n: m.weight.numel() for n, m in text.named_modules() if isinstance(m, nn.Linear) and m is not output}
        counted = {id(m.weight) for m in text.modules() if isinstance(m, nn.Linear | nn.Embedding)}
        if any(p.ndim > 1 and id(p) not in counted for p in text.parameters()) or sum(maps.values()) % layers:
            return None
        key_value = sum(size for n, size in maps.items() if n.endswith((".k_proj", ".v_proj")))
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        # If keys and values are part of a larger map, the last layer cannot skip the rest of it.
        linear = sum(maps.values()) // layers
        return cls(layers, linear, key_value // layers or linear, heads * head_dim, output.weight.numel())


@dataclass(frozen=True)
class Needed:
    """The work that a block-diffusion step with clean context needs, summed over the batch: rows and pairs of every
    layer but the last, and of the last layer, which computes only the rows that score tokens."""

    rows: int
    pairs: int
    last_rows: int
    last_pairs: int


def needed(masked: Bool[Tensor, "B V L"], block_size: int, token_shift: bool) -> Needed:
    """A noisy block is needed if one of its rows scores a masked token. Clean blocks, which the views of a row share,
    are needed up to the one before the last block with a masked token. With the shift, the clean row before a block
    scores the block's first token."""
    position = torch.arange(masked.shape[-1])
    block = position // block_size
    by_clean = masked & (position % block_size == 0) if token_shift else torch.zeros_like(masked)
    noisy = (masked & ~by_clean).unflatten(-1, (-1, block_size)).any(-1)  # [B V blocks]
    clean = torch.where(masked, block, 0).amax((1, 2))  # [B], in blocks
    index = torch.arange(noisy.shape[-1])
    rows = block_size * int(noisy.sum() + clean.sum())
    pairs = block_size**2 * int((noisy * (index + 1)).sum() + (clean * (clean + 1) // 2).sum())
    # Views that hide the first token of the same block share the clean row that scores it, and its pairs.
    scoring = by_clean.any(1)
    last_rows = int((masked & ~by_clean).sum() + scoring.sum())
    last_pairs = block_size * int(((masked & ~by_clean) * (block + 1)).sum() + (scoring * block).sum())
    return Needed(rows, pairs, last_rows, last_pairs)


def diffusion_step(shape: Shape, need: Needed) -> int:
    """The useful FLOP of a step: the exact pairs, and in the last layer the scoring rows, with keys and values of all
    rows."""
    linear = (shape.layers - 1) * need.rows * shape.linear
    linear += need.rows * shape.key_value + need.last_rows * (shape.linear - shape.key_value)
    if shape.key_value == shape.linear:
        linear = shape.layers * need.rows * shape.linear
    pairs = (shape.layers - 1) * need.pairs + need.last_pairs
    return LINEAR * (linear + need.last_rows * shape.head) + ATTENTION * shape.width * pairs


def plain_step(shape: Shape, rows: int, pairs: int, head_rows: int, frozen: bool = False) -> int:
    """FLOP of a step (forward and backward) with every row in every layer. Gradients only pass through `frozen` ones,
    on their way to what makes the embeddings of images."""
    linear = shape.layers * rows * shape.linear + head_rows * shape.head
    return (FROZEN_LINEAR if frozen else LINEAR) * linear + ATTENTION * shape.width * shape.layers * pairs


def plain_forward(shape: Shape, rows: int, pairs: int, head_rows: int) -> int:
    """FLOP of a forward without gradient, with every row in every layer."""
    linear = shape.layers * rows * shape.linear + head_rows * shape.head
    return FORWARD_LINEAR * linear + FORWARD_ATTENTION * shape.width * shape.layers * pairs


class Forwards:
    """Counts, within its context, the `rows` of a model's forwards, the `pairs` that their masks allow, and the
    `head_rows` of which logits are computed, and lists what was read with images (`pictured`). Attention masks must be
    dense and boolean (attn_implementation=sdpa)."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.rows, self.pairs, self.head_rows = model, 0, 0, 0
        self.pictured: list[dict[str, Any]] = []

    def __enter__(self) -> Forwards:
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        self.hooks = [decoder.register_forward_pre_hook(self.count_rows, with_kwargs=True)]
        self.hooks.append(head.register_forward_pre_hook(self.count_head_rows))
        if reads_images(self.model.config):
            self.hooks.append(self.model.base_model.register_forward_pre_hook(self.note_images, with_kwargs=True))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def note_images(self, module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        self.pictured.append({name: value for name, value in inputs.items() if isinstance(value, Tensor)})

    def count_rows(self, module: nn.Module, args: Any, inputs: dict[str, Any]) -> None:
        if listens(module):  # and computes nothing
            return
        masks = inputs["attention_mask"]
        masks = list(masks.values()) if isinstance(masks, dict) else [masks]  # windowed layers count as full ones
        self.rows += inputs["position_ids"].shape[-2:].numel()  # there may be several axes of positions
        self.pairs += max(int(mask.sum()) for mask in masks)

    def count_head_rows(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self.head_rows += args[0].shape[:-1].numel()


def executed(run: Callable[[], object]) -> dict[str, int]:
    """The FLOP that a call executes: `linear` and `attention`. Compiled kernels are invisible to the counter."""
    with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        run()
    by_operation = counter.get_flop_counts().get("Global", {})
    attention = sum(flop for operation, flop in by_operation.items() if "attention" in str(operation))
    return {"linear": sum(by_operation.values()) - attention, "attention": attention}


def formulas() -> dict[Any, Callable[..., int]]:
    """Formulas for what torch's own counter omits: in-place sums of a product and, for attention, the CPU kernel,
    grouped key heads, and causality."""
    formulas: dict[Any, Callable[..., int]] = {torch.ops.aten.addmm_: product_in_place}
    for kernel in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
        for suffix, matmuls in (("", 2), ("_backward", 5)):
            packet = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{suffix}")
            formulas[packet] = attention_formula([a.name for a in packet.default._schema.arguments], matmuls)
    return formulas


def product_in_place(total: Tensor, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    """The FLOP of `total += a @ b`."""
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


product_in_place._get_raw = True  # the counter passes the arguments themselves, not their shapes


def attention_formula(names: list[str], matmuls: int) -> Callable[..., int]:
    """The FLOP formula of an attention kernel with arguments `names`: [B H Q D] queries, [B H' K D] keys."""

    def flop(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        arguments = dict(zip(names, args, strict=False)) | kwargs
        (batch, heads, rows, dim), columns = arguments["query"].shape, arguments["key"].shape[2]
        pairs = rows * (rows + 1) // 2 if arguments.get("is_causal") and rows == columns else rows * columns
        return 2 * matmuls * batch * heads * pairs * dim

    flop._get_raw = True
    return flop
