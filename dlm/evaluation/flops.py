"""Work: what an arm executes, counted as it runs, and what the task needs, in closed form.

A multiplication and an addition are 2 FLOP. A linear map of R rows with P weights costs 2 R P forward and twice that
backward. Attention over `pairs` (row, column) pairs costs 4 x width x pairs forward and 2.5 times that backward (flash
attention computes the scores again); width is heads x head dimension. Element-wise work is not counted.
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

LINEAR, ATTENTION = 6, 14  # FLOP of forward and backward, per weight and row, and per width and pair
FORWARD_LINEAR, FORWARD_ATTENTION = 2, 4  # of the forward alone


@dataclass(frozen=True)
class Shape:
    """Sizes of a transformer whose layers are alike: `linear` weights of a layer's linear maps, of which `key_value`
    make keys and values; `head` weights of the output embedding."""

    layers: int
    linear: int
    key_value: int
    width: int
    head: int

    @classmethod
    def of(cls, model: PreTrainedModel) -> Shape | None:
        """None where the closed form does not hold: mixtures of experts, layers that differ."""
        config = model.config.get_text_config()
        layers, heads = config.num_hidden_layers, config.num_attention_heads
        output = model.get_output_embeddings()
        maps = {n: m.weight.numel() for n, m in model.named_modules() if isinstance(m, nn.Linear) and m is not output}
        known = {id(m.weight) for m in model.modules() if isinstance(m, nn.Linear | nn.Embedding)}
        if any(p.ndim > 1 and id(p) not in known for p in model.parameters()) or sum(maps.values()) % layers:
            return None
        key_value = sum(size for n, size in maps.items() if n.endswith((".k_proj", ".v_proj")))
        head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
        # Where keys and values are part of one map, the last layer cannot leave out the rest of it.
        linear = sum(maps.values()) // layers
        return cls(layers, linear, key_value // layers or linear, heads * head_dim, output.weight.numel())


@dataclass(frozen=True)
class Needed:
    """What a block-diffusion step with clean context cannot do without, summed over the batch: rows and pairs of every
    layer but the last, and of the last layer, which only scoring rows go through."""

    rows: int
    pairs: int
    last_rows: int
    last_pairs: int


def needed(masked: Bool[Tensor, "B V L"], block_size: int, token_shift: bool) -> Needed:
    """A noisy block is needed where one of its rows scores a masked token; clean blocks, which views of a row share,
    up to the one before the last block with a masked token. With the shift, the first token of a block is scored by the
    clean row before it."""
    position = torch.arange(masked.shape[-1])
    block = position // block_size
    by_clean = masked & (position % block_size == 0) if token_shift else torch.zeros_like(masked)
    noisy = (masked & ~by_clean).unflatten(-1, (-1, block_size)).any(-1)  # [B V blocks]
    clean = torch.where(masked, block, 0).amax((1, 2))  # blocks
    index = torch.arange(noisy.shape[-1])
    rows = block_size * int(noisy.sum() + clean.sum())
    pairs = block_size**2 * int((noisy * (index + 1)).sum() + (clean * (clean + 1) // 2).sum())
    # Views that hide the first token of the same block share the clean row that scores it, and its pairs.
    scoring = by_clean.any(1)
    last_rows = int((masked & ~by_clean).sum() + scoring.sum())
    last_pairs = block_size * int(((masked & ~by_clean) * (block + 1)).sum() + (scoring * block).sum())
    return Needed(rows, pairs, last_rows, last_pairs)


def diffusion_step(shape: Shape, need: Needed) -> int:
    """The useful FLOP of a step: exact pairs, and the last layer on scored rows, its keys and values on all."""
    linear = (shape.layers - 1) * need.rows * shape.linear
    linear += need.rows * shape.key_value + need.last_rows * (shape.linear - shape.key_value)
    if shape.key_value == shape.linear:
        linear = shape.layers * need.rows * shape.linear
    pairs = (shape.layers - 1) * need.pairs + need.last_pairs
    return LINEAR * (linear + need.last_rows * shape.head) + ATTENTION * shape.width * pairs


def plain_step(shape: Shape, rows: int, pairs: int, head_rows: int) -> int:
    """FLOP of a step that sends every row through every layer."""
    linear = shape.layers * rows * shape.linear + head_rows * shape.head
    return LINEAR * linear + ATTENTION * shape.width * shape.layers * pairs


def plain_forward(shape: Shape, rows: int, pairs: int, head_rows: int) -> int:
    """FLOP of a forward without gradient."""
    linear = shape.layers * rows * shape.linear + head_rows * shape.head
    return FORWARD_LINEAR * linear + FORWARD_ATTENTION * shape.width * shape.layers * pairs


class Forwards:
    """The `rows` of a model's forwards while this is entered, the `pairs` that they see, and the `head_rows` of which
    logits are made. Attention masks must be dense ones of booleans (attn_implementation=sdpa)."""

    def __init__(self, model: PreTrainedModel):
        self.model, self.rows, self.pairs, self.head_rows = model, 0, 0, 0

    def __enter__(self) -> Forwards:
        decoder, head = self.model.get_decoder(), self.model.get_output_embeddings()
        self.hooks = [decoder.register_forward_pre_hook(self.read, with_kwargs=True)]
        self.hooks.append(head.register_forward_pre_hook(self.score))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self.hooks:
            hook.remove()

    def read(self, module: nn.Module, args: Any, given: dict[str, Any]) -> None:
        masks = given["attention_mask"]
        masks = list(masks.values()) if isinstance(masks, dict) else [masks]  # windowed layers count as full ones
        self.rows += given["position_ids"].numel()
        self.pairs += max(int(mask.sum()) for mask in masks)

    def score(self, module: nn.Module, args: tuple[Tensor]) -> None:
        self.head_rows += args[0].shape[:-1].numel()


def executed(run: Callable[[], object]) -> dict[str, int]:
    """FLOP that a call executes: `linear` and `attention`. The counter cannot see compiled kernels."""
    with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        run()
    found = counter.get_flop_counts().get("Global", {})
    attention = sum(flop for op, flop in found.items() if "attention" in str(op))
    return {"linear": sum(found.values()) - attention, "attention": attention}


def formulas() -> dict[Any, Callable[..., int]]:
    """What torch's own counter leaves out: a product that is added in place, and, of attention, the CPU kernel, fewer
    key heads than query heads, and causality."""
    formulas: dict[Any, Callable[..., int]] = {torch.ops.aten.addmm_: product_in_place}
    for kernel in ("flash_attention", "flash_attention_for_cpu", "efficient_attention", "cudnn_attention"):
        for suffix, matmuls in (("", 2), ("_backward", 5)):
            packet = getattr(torch.ops.aten, f"_scaled_dot_product_{kernel}{suffix}")
            formulas[packet] = attention_formula([a.name for a in packet.default._schema.arguments], matmuls)
    return formulas


def product_in_place(total: Tensor, a: Tensor, b: Tensor, *args: Any, **kwargs: Any) -> int:
    """The FLOP of `total += a @ b`."""
    return 2 * a.shape[0] * a.shape[1] * b.shape[1]


product_in_place._get_raw = True  # the counter hands over arguments, not shapes


def attention_formula(names: list[str], matmuls: int) -> Callable[..., int]:
    """The FLOP of an attention kernel whose arguments are `names`: [B H Q D] queries, [B H' K D] keys."""

    def flop(*args: Any, out_val: Any = None, **kwargs: Any) -> int:
        given = dict(zip(names, args, strict=False)) | kwargs
        (batch, heads, rows, dim), columns = given["query"].shape, given["key"].shape[2]
        pairs = rows * (rows + 1) // 2 if given.get("is_causal") and rows == columns else rows * columns
        return 2 * matmuls * batch * heads * pairs * dim

    flop._get_raw = True
    return flop
