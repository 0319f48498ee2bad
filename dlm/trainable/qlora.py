"""Low-rank adapters on frozen matrices that are held in four bits (QLoRA, arXiv 2305.14314)."""

from __future__ import annotations

import importlib.util

import torch
from peft.tuners.lora import LoraLayer
from torch import nn

from dlm.trainable.lora import Lora
from dlm.trainable.quantised import dense, quantised


class Qlora(Lora):
    """`Lora` whose adapted matrices are quantised to NF4 once the parent's weights are recorded. A parameter then takes
    half a byte, and is computed with in the precision that the parent is loaded in. The result has the dequantised
    weights with the adapters merged, so that drift includes what quantising has changed. Needs bitsandbytes."""

    quantises = True

    def quantised(self, model):
        return [layer.base_layer.weight for layer in adapted_layers(model)]

    def ready(self, model):
        if importlib.util.find_spec("bitsandbytes") is None:
            raise ValueError("trainable=qlora needs bitsandbytes: pip install 'dlm[qlora]'")
        for layer in adapted_layers(model):
            layer.base_layer = quantised(layer.base_layer)

    @torch.no_grad()
    def merged(self, model):
        for layer in adapted_layers(model):
            weight, bias = dense(layer.base_layer.weight), layer.base_layer.bias
            layer.base_layer = nn.Linear(weight.shape[1], weight.shape[0], bias is not None, device="meta")
            layer.base_layer.weight, layer.base_layer.bias = nn.Parameter(weight, requires_grad=False), bias
        return super().merged(model)


def adapted_layers(model: nn.Module) -> list[LoraLayer]:
    return [module for module in model.modules() if isinstance(module, LoraLayer)]
