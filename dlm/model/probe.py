"""Checks by a few small forwards whether a model can be converted: its forward must obey the mask and the positions
that it is given, and nothing else."""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel

from dlm.attention.ar import AR
from dlm.attention.base import AttentionPattern
from dlm.attention.bidir import Bidir
from dlm.errors import one_line
from dlm.model.closeness import distance, tolerance
from dlm.model.denoiser import Denoiser
from dlm.types import Rows

PROBE_TOKENS, PROBE_WINDOW = 8, 4


@torch.no_grad()
def check_convertible(model: PreTrainedModel, types: dict[str, int | None]) -> None:
    """Raises `ValueError`, with the model's name and the reason, if its forward does not obey the mask and the
    positions. `types` are the masks that it takes: {layer type: sliding window or None}.

    It runs six forwards of 8 tokens. An explicit causal mask must give the model's plain logits for any order of the
    columns: [noisy ; clean] is such an order. Two documents under bidirectional attention must not see each other.
    """
    refuse = f"{model.config.model_type} cannot be converted: "
    if "position_ids" not in inspect.signature(type(model).forward).parameters:
        raise ValueError(refuse + "its forward takes no position_ids (ALiBi, recurrent or fixed positions)")
    if model.get_output_embeddings() is None:
        raise ValueError(refuse + "it has no output embedding, the layer that scores tokens")
    logits = probe_logits(model, types, refuse)
    if fault := next(disobedience(logits, model.dtype), None):
        raise ValueError(refuse + fault)


@dataclass(frozen=True)
class ProbeLogits:
    """The logits of a few tokens: `plain` without a mask, under an explicit `causal` mask, also with the columns
    `reversed`, and `both_ways`, under a bidirectional mask of two documents. For two of these the last token is also
    `changed`."""

    plain: Float[Tensor, "S V"]
    plain_changed: Float[Tensor, "S V"]
    causal: Float[Tensor, "S V"]
    reversed: Float[Tensor, "S V"]
    both_ways: Float[Tensor, "S V"]
    both_ways_changed: Float[Tensor, "S V"]


def probe_logits(model: PreTrainedModel, types: dict[str, int | None], refuse: str) -> ProbeLogits:
    """The logits of the six forwards. Raises `ValueError`, whose message begins with `refuse`, if one does not run."""
    ids = torch.arange(5, 5 + PROBE_TOKENS, device=model.device)[None]
    changed = ids.clone()
    changed[0, -1] += 1
    order = torch.arange(PROBE_TOKENS, device=model.device)
    one, two = torch.zeros_like(order), order * 2 // PROBE_TOKENS
    with narrow_windows(model, types) as narrow:
        try:
            plain = [model(input_ids=x, use_cache=False).logits[0, :, 1:].float() for x in (ids, changed)]
        except Exception as error:  # a foreign forward may raise anything
            raise ValueError(refuse + f"its forward does not run on token ids alone ({one_line(error)})") from error
        try:
            causal = [probe(model, AR(), narrow, ids, one, o) for o in (order, order.flip(0))]
            both_ways = [probe(model, Bidir(1), narrow, x, two, order) for x in (ids, changed)]
        except Exception as error:  # as above; the only difference is the mask and the positions
            raise ValueError(refuse + f"its forward does not take a 4-D attention mask ({one_line(error)})") from error
    return ProbeLogits(*plain, *causal, *both_ways)


def disobedience(logits: ProbeLogits, dtype: torch.dtype) -> Iterator[str]:
    """What the logits of a model that computes in `dtype` show of mask and positions that it does not obey. The first
    is a reason, the others may follow from it."""
    if differ(logits.plain[:-1], logits.plain_changed[:-1], dtype):
        yield "it is not autoregressive: its positions see later ones"
    if differ(logits.plain, logits.causal, dtype):
        yield "an explicit causal mask does not give its own logits, so it ignores the mask"
    half = PROBE_TOKENS // 2
    if torch.equal(logits.both_ways[half], logits.both_ways_changed[half]):
        yield "under a bidirectional mask no position sees a later one"
    if differ(logits.causal, logits.reversed, dtype):
        yield (
            "its logits depend on the order of the columns, not on mask and positions alone (ALiBi, "
            "convolutional, recurrent or linear layers)"
        )
    if differ(logits.both_ways[:half], logits.both_ways_changed[:half], dtype):
        yield "a masked position still leaks into others"


@contextmanager
def narrow_windows(model: PreTrainedModel, types: dict[str, int | None]) -> Iterator[dict[str, int | None]]:
    """A context with the model in evaluation mode and sliding windows narrower than the probe's few tokens. Yields the
    masks of its layers with these windows."""
    config, training = model.config.get_text_config(), model.training
    window = getattr(config, "sliding_window", None)
    model.eval()
    if window:
        config.sliding_window = PROBE_WINDOW
    try:
        yield {name: width and PROBE_WINDOW for name, width in types.items()}
    finally:
        if window:
            config.sliding_window = window
        model.train(training)


def probe(
    model: PreTrainedModel,
    pattern: AttentionPattern,
    types: dict[str, int | None],
    ids: Int[Tensor, "1 S"],
    document: Int[Tensor, " S"],
    order: Int[Tensor, " S"],
) -> Float[Tensor, "S V"]:
    """The logits under a pattern, in the order of `ids`, computed with the columns in `order`. Token 0 takes the place
    of the mask token, so its logits are left out."""
    denoiser = Denoiser(model, pattern, 0, True, types)
    position = torch.arange(len(order), device=order.device)
    rows = Rows(torch.ones_like(ids, dtype=torch.bool), document[order][None], position[order][None])
    masks = denoiser.masks(rows, rows)
    return denoiser.score(order.argsort(), ids[:, order], rows.position, masks, use_cache=False)[:, 1:]


def differ(a: Float[Tensor, "S V"], b: Float[Tensor, "S V"], dtype: torch.dtype) -> bool:
    """Whether logits that were computed in `dtype` differ by more than rounding."""
    return distance(a, b) > tolerance(dtype)
