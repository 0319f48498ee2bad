"""What tokens carry beside their ids, such as images, exactly as a model's own forward hands it to its decoder.

Nothing is known here of single architectures: the model's forward runs with a decoder that only listens. What it is
given is, token by token, all that the decoder reads: embeddings in the place of image tokens, positions on several
axes, features that are added in deeper layers. Token by token it can be laid out anew, as [noisy ; clean] in training
and as [pending ; current] in decoding. Text is always embedded from its ids, which may be hidden.

    M documents of T tokens        D width of the hidden states        A axes of positions        B S columns
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlm.model.head import Hidden

# What every decoder takes, and what is given to it here in its own way or not at all.
COMMON = {"input_ids", "inputs_embeds", "attention_mask", "position_ids", "past_key_values", "use_cache", "return_dict"}
COMMON |= {"output_attentions", "output_hidden_states", "cache_position"}


@dataclass(frozen=True)
class Context:
    """Of tokens of any shape P: which are `given` by their `embeds` instead of their ids, their positions on A axes,
    and what else the decoder takes: tensors `of_tokens`, and lists of tensors `of_given` that it takes for the given
    tokens alone (0 for the others)."""

    given: Bool[Tensor, "*P"]
    embeds: Float[Tensor, "*P D"]
    position_ids: Int[Tensor, "*P A"]
    of_tokens: dict[str, Tensor] = field(default_factory=dict)
    of_given: dict[str, list[Tensor]] = field(default_factory=dict)

    def map(self, function: Callable[[Tensor], Tensor]) -> Context:
        """Apply a function to every tensor."""
        return Context(
            function(self.given),
            function(self.embeds),
            function(self.position_ids),
            {name: function(value) for name, value in self.of_tokens.items()},
            {name: [function(value) for value in values] for name, values in self.of_given.items()},
        )

    def at(
        self,
        embedding: nn.Module,
        input_ids: Int[Tensor, "B S"],
        position_ids: Int[Tensor, "B S"],
        source: Int[Tensor, "B S"],
    ) -> dict[str, Any]:
        """The decoder's arguments for columns that stand for the tokens `source` of a context with P = one axis. A
        column that stands for none (-1) is text at its `position_ids`."""
        known = source >= 0
        given = self.given[source] & known
        embeds = embedding(input_ids.masked_fill(given, 0))
        embeds = torch.where(given[..., None], self.embeds[source].to(embeds.dtype), embeds)
        axes = torch.where(known[..., None], self.position_ids[source], position_ids[..., None]).movedim(-1, 0)
        of_tokens = {name: value[source] for name, value in self.of_tokens.items()}
        return {
            "input_ids": None,
            "inputs_embeds": embeds,
            "position_ids": axes if len(axes) > 1 else axes[0],
            **{name: value.masked_fill(~expanded(known, value), 0) for name, value in of_tokens.items()},
            **{name: [value[source[given]] for value in values] for name, values in self.of_given.items()},
        }


def expanded(mask: Bool[Tensor, "*P"], value: Tensor) -> Tensor:
    """A mask of tokens that broadcasts against a tensor of tokens."""
    return mask.view(*mask.shape, *[1] * (value.ndim - mask.ndim))


@contextmanager
def listening(decoder: nn.Module) -> Iterator[dict[str, Any]]:
    """A context in which a decoder computes nothing and notes the arguments that it is given, which are yielded."""
    heard: dict[str, Any] = {}

    def forward(input_ids: Tensor | None = None, **kwargs: Any) -> Hidden:
        heard.update(kwargs, input_ids=input_ids)
        return Hidden(last_hidden_state=kwargs.get("inputs_embeds"))

    decoder.forward = forward  # type: ignore[method-assign]
    try:
        yield heard
    finally:
        del decoder.forward


def record(model: PreTrainedModel, pictured: dict[str, Tensor]) -> Context:
    """The context of documents [M T], given the arguments of the model's forward for them. Gradients reach whatever
    makes the embeddings. Raises `ValueError` if the decoder takes something that is not laid out token by token."""
    ids = pictured["input_ids"]
    with listening(model.get_decoder()) as heard:
        model.base_model(**pictured, use_cache=False)
    embeds = heard.get("inputs_embeds")
    if embeds is None:
        raise ValueError(refusal(model, "it hands its decoder token ids, not embeddings with the images in place"))
    given = given_tokens(model, ids, embeds)
    axes = heard.get("position_ids")
    if axes is None:
        axes = torch.arange(ids.shape[1], device=ids.device)[None]
    axes = axes[-3:] if axes.ndim == 3 else axes[None]  # some put the position in the sequence before the three axes
    beside = {
        name: v for name, v in heard.items() if name not in COMMON and not isinstance(v, bool | int | float | str)
    }
    of_tokens, of_given = {}, {}
    for name, value in beside.items():
        if isinstance(value, Tensor) and value.shape[:2] == ids.shape and not value.is_floating_point():
            of_tokens[name] = value
        elif isinstance(value, list | tuple) and all(is_of_given(v, given) for v in value):
            of_given[name] = [v.new_zeros(*ids.shape, *v.shape[1:]).index_put((given,), v) for v in value]
        elif value is not None:
            raise ValueError(refusal(model, f"its decoder takes {name}, which is not laid out token by token"))
    return Context(given, embeds, axes.expand(len(axes), *ids.shape).movedim(0, -1), of_tokens, of_given)


@torch.no_grad()
def given_tokens(
    model: PreTrainedModel, ids: Int[Tensor, "M T"], embeds: Float[Tensor, "M T D"]
) -> Bool[Tensor, "M T"]:
    """Which tokens a model embeds otherwise than by their ids."""
    embedding = model.get_input_embeddings()
    return (embedding(ids.clamp_max(embedding.weight.shape[0] - 1)) != embeds).any(-1)


def is_of_given(value: Any, given: Bool[Tensor, "M T"]) -> bool:
    """Whether a value has a row for each of the given tokens."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == int(given.sum())


def refusal(model: PreTrainedModel, why: str) -> str:
    return f"{model.config.model_type} cannot be converted with images: {why}"
