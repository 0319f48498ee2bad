"""What a model that reads images hands its decoder for the tokens of a prompt, found by listening: the model's own
forward runs with a decoder that only notes what it is given. It depends on torch and transformers only."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from inspect import signature
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPast

# What every decoder takes, and what is given to it in another way or not at all.
COMMON = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache", "return_dict"}
COMMON |= {"output_attentions", "output_hidden_states", "cache_position"}


class Hidden(BaseModelOutputWithPast):
    """The output of a decoder, with None for every field that some decoders add."""

    def __getattr__(self, name: str) -> None:
        return None


@contextmanager
def idle(module: nn.Module) -> Iterator[dict[str, Any]]:
    """A context in which a module computes nothing: it notes its arguments, which are yielded, and returns its
    `inputs_embeds`."""
    noted: dict[str, Any] = {}
    own = vars(module).get("forward")  # libraries that move weights between devices put one there

    def forward(input_ids: Tensor | None = None, **kwargs: Any) -> Hidden:
        noted.update(kwargs, input_ids=input_ids)
        return Hidden(last_hidden_state=kwargs.get("inputs_embeds"))

    module.forward = forward
    try:
        yield noted
    finally:
        del module.forward
        if own is not None:
            module.forward = own


def embedded(model: PreTrainedModel, ids: Tensor) -> Tensor:
    """The embeddings of ids. Those of image tokens may lie behind the last one."""
    embedding = model.get_input_embeddings()
    return embedding(ids.clamp_max(embedding.weight.shape[0] - 1))


def runs(chosen: Tensor) -> Tensor:
    """The number of the run of consecutive `chosen` tokens [T] that each of them is in; -1 elsewhere."""
    begins = chosen.clone()
    begins[1:] &= ~chosen[:-1]
    return torch.where(chosen, begins.cumsum(0) - 1, -1)


@dataclass
class Pictures:
    """The tokens of a prompt [T]: which are `given` by their `embeds` [T, D] instead of their ids, their `positions` on
    A axes [A, T], which are `in_span`, that is see one another both ways where they follow each other, and what else
    the decoder takes: tensors `of_tokens` [T, …], and lists of tensors `of_given`, of which it takes the rows of the
    given tokens alone (here [T, …], too)."""

    given: Tensor
    embeds: Tensor
    positions: Tensor
    in_span: Tensor
    of_tokens: dict[str, Tensor]
    of_given: dict[str, list[Tensor]]

    def reads(self, model: PreTrainedModel, ids: Tensor, q: Tensor) -> dict[str, Any]:
        """The decoder's arguments for `ids` [Q] at the places `q` [Q]. Behind the prompt, positions go on at the one
        after its largest."""
        length = len(self.given)
        known, source = q < length, q.clamp_max(length - 1)
        given, positions = self.given[source] & known, self.positions[:, source]
        behind = self.positions.max() + 1 + q - length
        positions = torch.where(known, positions, behind)[:, None]
        embeds = torch.where(given[:, None], self.embeds[source], embedded(model, ids))
        reads = {"inputs_embeds": embeds[None], "position_ids": positions if len(positions) > 1 else positions[0]}
        if given.any():
            for name, value in self.of_tokens.items():
                reads[name] = (value[source] * given.view(-1, *[1] * (value.ndim - 1)))[None]
            reads |= {name: [value[source[given]] for value in values] for name, values in self.of_given.items()}
        return reads

    def spans(self, start: int, length: int) -> Tensor | None:
        """The number of the run of tokens in a span, for every place [length] of a text; -1 where there is none. None:
        no token is in one. A run ends with the finished blocks, that is at `start`: what is behind is not in the cache
        when they are written into it."""
        if not self.in_span.any():
            return None
        found = runs(self.in_span[:start])
        return torch.cat([found, found.new_full((length - start,), -1)])


def reads_images(model: PreTrainedModel) -> bool:
    return hasattr(model.config, "vision_config")


def image_arguments(model: PreTrainedModel, options: dict[str, Any]) -> dict[str, Tensor]:
    """Take the arguments of the model's forward that are about images out of the options of a call. Raises `ValueError`
    for videos."""
    names = signature(model.base_model.forward).parameters.keys() - COMMON if reads_images(model) else ()
    found = {name: options.pop(name) for name in [*options] if name in names}
    if videos := [name for name, value in found.items() if "video" in name and value is not None]:
        raise ValueError(f"{videos[0]}: videos are not read: give images")
    return {name: value for name, value in found.items() if value is not None}


def pictures_of_prompts(
    model: PreTrainedModel, prompts: list[Tensor], kept: Tensor, arguments: dict[str, Tensor]
) -> list[Pictures] | list[None]:
    """The pictures of every prompt, whose tokens are those of the call that are `kept` [B, P]; None if none has any.
    Raises `ValueError` for image tokens without images, and for video tokens."""
    if "pixel_values" not in arguments:
        for kind, remedy in (("image", "give the pixel_values of the processor"), ("video", "videos are not read")):
            token = getattr(model.config, f"{kind}_token_id", None)
            if reads_images(model) and token is not None and any(token in prompt for prompt in prompts):
                raise ValueError(f"input_ids hold {kind} tokens (id {token}): {remedy}")
        return [None] * len(prompts)
    arguments = {name: value.to(model.device) for name, value in arguments.items()}
    arguments |= {
        name: pad_sequence([row[keep] for row, keep in zip(value, kept, strict=True)], True)
        for name, value in arguments.items()
        if value.shape == kept.shape
    }
    return pictures_of(model, prompts, arguments)


def pictures_of(model: PreTrainedModel, prompts: Sequence[Tensor], arguments: dict[str, Tensor]) -> list[Pictures]:
    """The pictures of prompts, each [T], given the `arguments` of the model's forward for all of them. Raises
    `ValueError` if the decoder takes something that is not laid out token by token."""
    ids = pad_sequence(list(prompts), True)
    with idle(model.get_decoder()) as heard:
        model.base_model(input_ids=ids, use_cache=False, **arguments)
    embeds, axes = heard["inputs_embeds"], heard.get("position_ids")
    given = (embedded(model, ids) != embeds).any(-1)
    if axes is None or getattr(model.config, "images_on_one_axis", False):
        axes = torch.arange(ids.shape[1], device=ids.device)[None]
    axes = axes[-3:] if axes.ndim == 3 else axes[None]  # some put the place in the sequence before the three axes
    axes = axes.expand(-1, *ids.shape)
    of_tokens, of_given = {}, {}
    for name, value in heard.items():
        if name in COMMON or value is None or isinstance(value, bool | int | float | str):
            continue
        if isinstance(value, Tensor) and value.shape[:2] == ids.shape:
            of_tokens[name] = value
        elif isinstance(value, list | tuple) and all(len(v) == given.sum() for v in value):
            of_given[name] = [v.new_zeros(*ids.shape, *v.shape[1:]).index_put((given,), v) for v in value]
        else:
            raise ValueError(f"{name} is not laid out token by token: use the version of transformers of the export")
    in_span = seen_both_ways(heard.get("attention_mask"), ids, given)
    return [
        Pictures(
            given[n, : len(prompt)],
            embeds[n],
            axes[:, n, : len(prompt)],
            in_span[n, : len(prompt)],
            {name: value[n] for name, value in of_tokens.items()},
            {name: [value[n] for value in values] for name, values in of_given.items()},
        )
        for n, prompt in enumerate(prompts)
    ]


def seen_both_ways(masks: Any, ids: Tensor, given: Tensor) -> Tensor:
    """Which `given` tokens [B, T] see one another both ways under the model's own masks."""
    mask = masks["full_attention"] if isinstance(masks, dict) else masks
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return torch.zeros_like(given)
    seen = mask[:, 0] if mask.dtype == torch.bool else mask[:, 0] == 0
    ahead = (seen & torch.ones_like(seen).triu(1)).any(-1)
    return torch.isin(ids, ids[ahead & given]) & given
