"""What autograd keeps of a real forward."""

import torch
from common import random_batch

from dlm.types import Noised


def kept_by_autograd(scorer, rows, length):
    """The bytes that a real forward of the decoder keeps, without the weights."""
    batch = random_batch(rows, length)
    inputs, _ = scorer.inputs(batch, Noised(batch.x0, batch.maskable, batch.maskable.float()))
    kept, own = {}, {p.untyped_storage().data_ptr() for p in [*scorer.parameters(), *scorer.buffers()]}

    def keep(tensor):
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = (storage.nbytes(), tensor)  # held, so that no address comes twice
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        scorer.read(inputs)
    return sum(size for address, (size, _) in kept.items() if address not in own)
