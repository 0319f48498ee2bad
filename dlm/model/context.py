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
    and what else the decoder takes for the given ones: tensors `of_tokens`, which are 0 for all others, and lists of
    tensors `of_given`, of which it takes the rows of the given tokens alone."""

    given: Bool[Tensor, "*P"]
    embeds: Float[Tensor, "*P D"]
    position_ids: Int[Tensor, "*P A"]
    of_tokens: dict[str, Tensor] = field(default_factory=dict)
    of_given: dict[str, list[Tensor]] = field(default_factory=dict)

    def map(self, function: Callable[..., Tensor], *others: Context) -> Context:
        """Apply a function to every tensor and those of others in its place."""
        every = (self, *others)
        return Context(
            function(*(c.given for c in every)),
            function(*(c.embeds for c in every)),
            function(*(c.position_ids for c in every)),
            {name: function(*(c.of_tokens[name] for c in every)) for name in self.of_tokens},
            {
                name: [function(*values) for values in zip(*(c.of_given[name] for c in every), strict=True)]
                for name in self.of_given
            },
        )

    def alike(self, other: Context) -> tuple[Context, Context]:
        """This context and another one, both with all kinds of values that either has. One that lacks none is returned
        itself."""
        return self.filled(other), other.filled(self)

    def filled(self, other: Context) -> Context:
        axes = other.position_ids.shape[-1] if self.position_ids.shape[-1] == 1 else self.position_ids.shape[-1]
        lacking = (other.of_tokens.keys() - self.of_tokens.keys()) | (other.of_given.keys() - self.of_given.keys())
        if axes == self.position_ids.shape[-1] and not lacking:
            return self

        def zeros(value: Tensor) -> Tensor:
            return value.new_zeros(*self.given.shape, *value.shape[other.given.ndim :])

        of_tokens = {name: zeros(value) for name, value in other.of_tokens.items()} | self.of_tokens
        of_given = {name: [zeros(v) for v in values] for name, values in other.of_given.items()} | self.of_given
        positions = self.position_ids.repeat_interleave(axes // self.position_ids.shape[-1], -1)
        return Context(self.given, self.embeds, positions, of_tokens, of_given)

    def at(
        self,
        source: Int[Tensor, "B S"],
        embeds: Float[Tensor, "B S D"],
        position_ids: Int[Tensor, "B S"],
        has_given: bool = True,
    ) -> dict[str, Any]:
        """The decoder's arguments for columns that stand for the tokens `source` of a context with P = one axis. A
        column that stands for none (-1) has its position of `position_ids`; one whose token is not given has its
        embedding of `embeds`. `has_given`: some token may be given."""
        known, of_given = source >= 0, {}
        axes = torch.where(known[..., None], self.position_ids[source], position_ids[..., None]).movedim(-1, 0)
        if has_given:
            given = self.given[source] & known
            embeds = torch.where(given[..., None], self.embeds[source].to(embeds.dtype), embeds)
            of_given = {name: value[source] * expanded(given, value) for name, value in self.of_tokens.items()}
            of_given |= {name: [value[source[given]] for value in values] for name, values in self.of_given.items()}
        positions = axes if len(axes) > 1 else axes[0]
        return {"input_ids": None, "inputs_embeds": embeds, "position_ids": positions, **of_given}


def expanded(mask: Bool[Tensor, "B S"], value: Tensor) -> Tensor:
    """A mask of tokens [B S] that broadcasts against values of tokens, of any further axes (here: of P = one axis)."""
    return mask.view(*mask.shape, *[1] * (value.ndim - 1))


def embedded(model: PreTrainedModel, ids: Int[Tensor, "*P"]) -> Float[Tensor, "*P D"]:
    """The embeddings of ids. Those of image tokens, which are given, may lie behind the last one."""
    embedding = model.get_input_embeddings()
    return embedding(ids.clamp_max(embedding.weight.shape[0] - 1))


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


def listens(decoder: nn.Module) -> bool:
    """Whether a decoder only listens at the moment."""
    return "forward" in vars(decoder)


def record(model: PreTrainedModel, pictured: dict[str, Tensor]) -> Context:
    """The context of documents [M T], given the arguments of the model's forward for them. Gradients reach whatever
    makes the embeddings. Raises `ValueError` if the decoder takes something that is not laid out token by token."""
    ids = pictured["input_ids"]
    with listening(model.get_decoder()) as heard:
        model.base_model(**pictured, use_cache=False)
    embeds = heard.get("inputs_embeds")
    if embeds is None:
        beside = ", ".join(name for name in heard if name not in COMMON and isinstance(heard[name], Tensor))
        why = f"it hands its decoder {beside or 'nothing'} beside token ids, not embeddings with the images in place"
        raise ValueError(refusal(model, why))
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
        if isinstance(value, Tensor) and value.shape[:2] == ids.shape and not value[~given].any():
            of_tokens[name] = value
        elif isinstance(value, list | tuple) and all(is_of_given(v, given) for v in value):
            of_given[name] = [v.new_zeros(*ids.shape, *v.shape[1:]).index_put((given,), v) for v in value]
        elif value is not None:
            why = f"its decoder takes {name}, which says something of text or is not laid out token by token"
            raise ValueError(refusal(model, why))
    return Context(given, embeds, axes.expand(len(axes), *ids.shape).movedim(0, -1), of_tokens, of_given)


@torch.no_grad()
def given_tokens(
    model: PreTrainedModel, ids: Int[Tensor, "M T"], embeds: Float[Tensor, "M T D"]
) -> Bool[Tensor, "M T"]:
    """Which tokens a model embeds otherwise than by their ids."""
    return (embedded(model, ids) != embeds).any(-1)


def is_of_given(value: Any, given: Bool[Tensor, "M T"]) -> bool:
    """Whether a value has a row for each of the given tokens."""
    return isinstance(value, Tensor) and value.ndim > 0 and len(value) == int(given.sum())


def refusal(model: PreTrainedModel, why: str) -> str:
    return f"{model.config.model_type} cannot be converted with images: {why}"
