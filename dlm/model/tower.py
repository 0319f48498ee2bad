"""What images cost before the decoder reads them: FLOP of vision tower and connector, and what autograd keeps there.

The model's own forward runs up to a decoder that listens, and its backward, but without a single product of matrices:
of these only the shapes are made. So nothing is known here of single architectures, and counting is cheap.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves, tree_map_only
from torch.utils.flop_counter import FlopCounterMode, flop_registry
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from dlm.model.context import listening
from dlm.model.flops import formulas
from dlm.trainable.base import vision_parts
from dlm.types import moved


class Uncomputed(TorchDispatchMode):
    """Products of matrices, convolutions and attention return zeros of the right shape instead of their results."""

    def __init__(self):
        super().__init__()
        self.products = flop_registry.keys() | formulas().keys()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        kwargs = kwargs or {}
        if func._overloadpacket not in self.products:
            return func(*args, **kwargs)
        device = next(value.device for value in tree_leaves(args) if isinstance(value, Tensor))
        shapes = func(*(tree_map_only(Tensor, lambda t: t.to("meta"), value) for value in args), **kwargs)
        return tree_map_only(Tensor, lambda t: torch.zeros_like(t, device=device), shapes)


def image_flops(model: PreTrainedModel, pictured: dict[str, Tensor] | None, trained: bool) -> int:
    """The FLOP of vision tower and connector for the documents of a forward (`ModelInputs.pictured`; None: there are no
    images): of the forward and, where weights of theirs are to be `trained`, of the backward as far as it goes."""
    if pictured is None:
        return 0
    weights = [p for p in vision_weights(model) if p.requires_grad and trained]
    counter = FlopCounterMode(display=False, custom_mapping=formulas())
    with torch.set_grad_enabled(bool(weights)), Uncomputed(), counter:
        heard = [value for value in heard_of(model, pictured) if value.requires_grad]
        if weights:
            torch.autograd.grad(heard, weights, [torch.ones_like(value) for value in heard], allow_unused=True)
    return counter.get_total_flops()


def image_bytes(model: PreTrainedModel, pictured: dict[str, Tensor]) -> tuple[int, int]:
    """The bytes that autograd keeps of tower and connector for these documents, in the type of their weights: as it is,
    and with activation checkpointing (the inputs of the tower's layers, and one layer)."""
    if not any(p.requires_grad for p in vision_weights(model)):
        return 0, 0
    kept: dict[int, tuple[int, Tensor]] = {}
    inputs: list[int] = []

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage._cdata] = storage.nbytes(), tensor  # held, so that no storage takes the place of another
        return tensor

    layers = [m for m in outside_decoder(model) if isinstance(m, GradientCheckpointingLayer)]
    hooks = [layer.register_forward_pre_hook(lambda _, args: inputs.append(args[0].nbytes)) for layer in layers]
    with torch.enable_grad(), Uncomputed(), torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        heard_of(model, pictured)
    for hook in hooks:
        hook.remove()
    own = {t.untyped_storage()._cdata for t in [*model.parameters(), *model.buffers()]}
    total = sum(size for storage, (size, _) in kept.items() if storage not in own)
    return total, sum(inputs) + total // max(len(inputs), 1)


def heard_of(model: PreTrainedModel, pictured: dict[str, Tensor]) -> list[Tensor]:
    """All tensors that a model hands to its decoder for these documents."""
    tower = next(iter(vision_weights(model)))

    def to_tower(value: Tensor) -> Tensor:
        return value.to(tower.device, tower.dtype if value.is_floating_point() else None)

    with listening(model.get_decoder()) as heard:
        model.base_model(**moved(pictured, to_tower), use_cache=False)
    return [value for value in tree_leaves(heard) if isinstance(value, Tensor)]


def vision_weights(model: PreTrainedModel) -> Iterator[nn.Parameter]:
    """The weights of the vision tower and the connector."""
    for weights in vision_parts(model).values():
        yield from weights


def outside_decoder(model: PreTrainedModel) -> Iterator[nn.Module]:
    """The modules of a model that are not in its decoder."""
    decoder = {id(module) for module in model.get_decoder().modules()}
    return (module for module in model.modules() if id(module) not in decoder)
