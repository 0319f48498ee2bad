"""Weights in four bits (NF4 of bitsandbytes, with quantised scales)."""

from __future__ import annotations

import math

from torch import Tensor, nn

BLOCK, SUPERBLOCK = 64, 256  # entries that share a scale of 8 bits, and scales that share one of 32
TABLES = 4 * (16 + 256 + 1)  # bytes beside each matrix: the values of four bits, those of a scale, and the mean scale


def packed_bytes(entries: int) -> int:
    """The bytes of a matrix in four bits with its scales: 4.127 bits an entry (QLoRA, section 3)."""
    scales = math.ceil(entries / BLOCK)
    return math.ceil(entries / 2) + scales + 4 * math.ceil(scales / SUPERBLOCK) + TABLES


def is_quantised(weight: Tensor) -> bool:
    """Whether a parameter is held in four bits."""
    return getattr(weight, "quant_state", None) is not None


def quantised(layer: nn.Linear) -> nn.Module:
    """A linear layer with the weight of `layer` in four bits, frozen. Raises `ValueError` for another kind of layer."""
    import bitsandbytes as bnb

    if type(layer) is not nn.Linear:
        raise ValueError(f"trainable=qlora quantises nn.Linear, and the parent has {type(layer).__name__}: choose lora")
    weight, bias = layer.weight, layer.bias
    linear = bnb.nn.Linear4bit(
        layer.in_features, layer.out_features, bias is not None, weight.dtype, quant_type="nf4", device="meta"
    )
    linear.weight = bnb.nn.Params4bit(weight.detach(), requires_grad=False, quant_type="nf4").to(weight.device)
    linear.bias = bias
    linear.support_avx512bf16_for_cpu = False  # else a forward without gradients lays the weight out anew
    return linear


def dense(weight: Tensor) -> Tensor:
    """A weight with a value for every entry: dequantised, in its precision before, if it is in four bits."""
    if not is_quantised(weight):
        return weight
    from bitsandbytes.functional import dequantize_4bit

    return dequantize_4bit(weight.data, weight.quant_state)


def without_quantised(state: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """The state of a model without its weights in four bits and their scales, which are made from the parent again."""
    names = tuple(name for name, parameter in model.named_parameters() if is_quantised(parameter))
    return {key: value for key, value in state.items() if not (names and key.startswith(names))}
