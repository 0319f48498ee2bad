"""A key-value cache with one slot per absolute position, so that sequences of a batch may be at different positions."""

from __future__ import annotations

import torch
from jaxtyping import Int
from torch import Tensor
from transformers.cache_utils import Cache, CacheLayerMixin


class SlotLayer(CacheLayerMixin):
    """Writes keys and values at the slots of the current forward (`cache.slots`) and returns the first `cache.read` of
    them. Slot -1, scratch, comes first."""

    is_sliding = False
    is_compileable = True

    def __init__(self, cache: SlotCache):
        super().__init__()
        self.cache = cache

    def lazy_initialization(self, key_states, value_states=None):
        batch, heads, _, width = key_states.shape
        size = self.cache.num_slots + 1
        self.keys = key_states.new_zeros(batch, heads, size, width)
        self.values = (
            self.keys if value_states is None else value_states.new_zeros(batch, heads, size, value_states.shape[-1])
        )
        self.is_initialized = True

    def update(self, key_states, value_states, *args, **kwargs):
        if not self.is_initialized:
            self.lazy_initialization(key_states, value_states)
        # By index, not `scatter_`: of a compiled layer, torch turns only this into a write that copies no cache.
        slots = self.cache.slots + 1
        sequences = torch.arange(len(slots), device=slots.device)[:, None]
        self.keys[sequences, :, slots] = key_states.transpose(1, 2)
        self.values[sequences, :, slots] = value_states.transpose(1, 2)
        return self.keys[:, :, : self.cache.read + 1], self.values[:, :, : self.cache.read + 1]

    def get_mask_sizes(self, query_length):
        return self.cache.read + 1, 0

    def get_seq_length(self):
        return 0

    def get_max_cache_shape(self):
        return self.cache.num_slots + 1

    def get_max_length(self):
        return self.cache.num_slots + 1


class SlotCache(Cache):
    """One `SlotLayer` per layer. Before each forward set `slots`, where every input position writes its keys and
    values, and `read`, the number of slots (without scratch) that it may see."""

    slots: Int[Tensor, "B R"]
    read: int

    def __init__(self, num_layers: int, num_slots: int):
        self.num_slots = num_slots
        super().__init__(layers=[SlotLayer(self) for _ in range(num_layers)])

    def widen(self, num_slots: int) -> None:
        """Make room for as many slots, at least those that there are."""
        more, self.num_slots = num_slots - self.num_slots, num_slots
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = (
                    torch.nn.functional.pad(t, (0, 0, 0, more)) for t in (layer.keys, layer.values)
                )

    def keep(self, sequences: Int[Tensor, " M"]) -> None:
        """Remove all sequences but these."""
        for layer in self.layers:
            if layer.is_initialized:
                layer.keys, layer.values = layer.keys[sequences], layer.values[sequences]

    def join(self, other: SlotCache) -> None:
        """Append the sequences of another cache of as many slots."""
        for layer, new in zip(self.layers, other.layers, strict=True):
            if layer.is_initialized:
                layer.keys = torch.cat([layer.keys, new.keys])
                layer.values = torch.cat([layer.values, new.values])

    def saved(self, sequence: int, length: int) -> list[tuple[Tensor, Tensor]]:
        """A copy of the keys and values of a sequence in its first slots, [heads, length, width] of each layer."""
        span = slice(1, length + 1)  # scratch comes first
        return [
            (layer.keys[sequence, :, span].clone(), layer.values[sequence, :, span].clone()) for layer in self.layers
        ]

    def load(self, sequence: int, count: int, layers: list[tuple[Tensor, Tensor]]) -> None:
        """Write keys and values into the first slots of one of `count` sequences."""
        for layer, (keys, values) in zip(self.layers, layers, strict=True):
            if not layer.is_initialized:
                layer.lazy_initialization(*(t.expand(count, *t.shape) for t in (keys, values)))
            span = slice(1, keys.shape[1] + 1)
            layer.keys[sequence, :, span], layer.values[sequence, :, span] = keys, values

    def replace(self, sequences: Int[Tensor, " M"], other: SlotCache) -> None:
        """Overwrite these sequences, in place, with those of another cache of as many slots."""
        for layer, new in zip(self.layers, other.layers, strict=True):
            if layer.is_initialized:
                layer.keys[sequences] = new.keys
                layer.values[sequences] = new.values
