"""A model without its decoder: hidden states → logits by the model's own code."""

from __future__ import annotations

import copy
from typing import Any

from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

from dlm.model.vision import reads_images


class Hidden(BaseModelOutputWithPast):
    """The output of a decoder, with None for every field that some decoders add (router logits, cross attentions)."""

    def __getattr__(self, name: str) -> None:
        return None


class PassThrough(nn.Module):
    """Takes the place of a decoder and returns its `inputs_embeds` as hidden states."""

    def forward(self, *args: Any, inputs_embeds: Tensor, **kwargs: Any) -> Hidden:
        return Hidden(last_hidden_state=inputs_embeds)


def without_decoder(model: PreTrainedModel) -> PreTrainedModel:
    """A copy of the model that shares its modules but takes the decoder's hidden states as `inputs_embeds`. The head
    and all that follows it (soft-capping, scaling) remain the model's own code. Of a model that reads images, all that
    surrounds the decoder is left out, too: it would make positions and masks for the hidden states."""
    decoder = model.base_model if reads_images(model.config) else model.get_decoder()
    path = next(name for name, module in model.named_modules() if module is decoder)
    head = node = copy.copy(model)
    *holders, last = path.split(".")
    for name in holders:
        node._modules = node._modules | {name: copy.copy(node._modules[name])}
        node = node._modules[name]
    node._modules = node._modules | {last: PassThrough()}
    return head
