"""Shards a model over the processes of a training, so that no process holds all weights, gradients and moments of its
layers (FSDP2, arXiv 2304.11277: `torch.distributed.fsdp.fully_shard`).

The layers are sharded, and each is gathered only where it is read. What is outside the layers (embedding, head, last
norm) is whole in every process: heads that are tied to the embedding, and losses that are computed from the head's
weight chunk by chunk, work as they do without shards. Its gradients are averaged as in DDP.

Weights that are sharded are `DTensor`s. Functions that read weights or gradients get a plain tensor from `local`, this
process's part, or from `whole`, all of it, which all processes must call.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.distributed.device_mesh import DeviceMesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from dlm.model.tower import vision_weights
from dlm.model.vision import reads_images


def sharded_layers(model: PreTrainedModel) -> list[nn.Module]:
    """The layers to shard. Raises `ValueError` if the model has none that can be told apart."""
    layers = [m for m in model.get_decoder().modules() if isinstance(m, GradientCheckpointingLayer)]
    if not layers:
        raise ValueError(f"runtime.strategy=fsdp2 finds no layers in {type(model).__name__}: choose ddp")
    return layers


def shard(model: PreTrainedModel, mesh: DeviceMesh) -> list[nn.Parameter]:
    """Shard the layers of a model, in place, over the processes of a mesh of one dimension. Returns the weights whose
    gradients are still to be averaged after a backward (`average`): those that not every process reads in each."""
    layers = sharded_layers(model)
    for layer in layers:
        fully_shard(layer, mesh=mesh)
    outside = {p for p in model.parameters() if not isinstance(p, DTensor)}
    # The decoder has no shards of its own, but it knows the order of its layers and gathers the next one ahead.
    fully_shard(model.get_decoder(), mesh=mesh, ignored_params=outside)
    seldom_read = [p for p in vision_weights(model) if p.requires_grad] if reads_images(model.config) else []
    for parameter in outside - set(seldom_read):
        if parameter.requires_grad:
            parameter.register_post_accumulate_grad_hook(averaged(mesh))
    return seldom_read


def average(parameters: list[nn.Parameter], mesh: DeviceMesh) -> None:
    """Average the gradients of weights over the processes. Where a process has none for a weight, it counts as 0; where
    none has, as of a part of a tower that no loss reads, there is none afterwards. All processes must call it."""
    group, size = mesh.get_group(), mesh.size()
    read = torch.tensor([p.grad is not None for p in parameters], dtype=torch.int32, device=parameters[0].device)
    dist.all_reduce(read, dist.ReduceOp.MAX, group=group)
    for parameter, is_read in zip(parameters, read.tolist(), strict=True):
        if is_read:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
            dist.all_reduce(parameter.grad, group=group)
            parameter.grad /= size


def averaged(mesh: DeviceMesh):
    """A hook that averages an accumulated gradient over the processes. With several micro-batches, what the earlier
    ones gave is the same in all processes, and stays."""
    group, size = mesh.get_group(), mesh.size()

    def hook(parameter: Tensor) -> None:
        dist.all_reduce(parameter.grad, group=group)
        parameter.grad /= size

    return hook


def is_sharded(model: nn.Module) -> bool:
    """Whether a model has shards."""
    return any(isinstance(p, DTensor) for p in model.parameters())


def whole(tensor: Tensor) -> Tensor:
    """A weight or gradient without shards. All processes must call it, for the same tensor."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def local(tensor: Tensor) -> Tensor:
    """The part of a weight or gradient that this process holds; a view."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def by_sharding(parameters: Iterable[nn.Parameter]) -> Iterator[list[nn.Parameter]]:
    """The parameters that are whole, also if there are none, and those that are sharded, if there are any: fused
    operations take only one of them."""
    parameters = [*parameters]
    yield [p for p in parameters if not isinstance(p, DTensor)]
    if sharded := [p for p in parameters if isinstance(p, DTensor)]:
        yield sharded


def clip_grad_norm(parameters: Iterable[nn.Parameter], max_norm: float) -> Tensor:
    """`torch.nn.utils.clip_grad_norm_` for weights of which some are sharded: the norm before clipping."""
    groups = [group for group in by_sharding(p for p in parameters if p.grad is not None) if group]
    if not groups:
        return torch.zeros(())  # a step that is left out
    norms = [whole(torch.nn.utils.get_total_norm([p.grad for p in group])) for group in groups]
    norm = torch.linalg.vector_norm(torch.stack(norms)) if len(norms) > 1 else norms[0]
    for group in groups:
        torch.nn.utils.clip_grads_with_norm_(group, max_norm, norm)
    return norm


@torch.no_grad()
def gather(model: nn.Module, keep: bool) -> None:
    """Replace every sharded weight by the whole one, on the CPU, in the process that is to `keep` and write them: the
    model makes no more forwards. All processes must call it."""
    for module in model.modules():
        for name, parameter in [*module.named_parameters(recurse=False)]:
            if isinstance(parameter, DTensor):
                gathered = whole(parameter)
                if keep:
                    module._parameters[name] = nn.Parameter(gathered.cpu(), parameter.requires_grad)
