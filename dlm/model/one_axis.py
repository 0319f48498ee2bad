"""Images on one axis of positions, as text is, for a model whose images have three (Qwen-VL, GLM-4V).

The released code of DiffusionVL (arXiv 2512.15713) numbers all tokens in sequence. This changes what the parent
computes; here it is an option, so that its cost can be measured. The model's config remembers it, and `dlm` and the
code of an export read it there. Plain transformers does not know it, and reads a run's folder with three axes.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlm.model.context import listening
from dlm.model.vision import reads_images

FLAG = "images_on_one_axis"  # of a model's config


def number_in_sequence(decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> tuple[tuple, dict[str, Any]] | None:
    """A hook before a decoder's forward: positions on several axes [A B T] become the places in the sequence [B T],
    behind what is in its cache."""
    axes, cache = kwargs.get("position_ids"), kwargs.get("past_key_values")
    if not isinstance(axes, Tensor) or axes.ndim < 3:
        return None
    begin = 0 if cache is None else cache.get_seq_length()
    places = torch.arange(begin, begin + axes.shape[-1], device=axes.device)
    return args, kwargs | {"position_ids": places.expand(axes.shape[1:])}


def mark_one_axis(model: PreTrainedModel, document: dict[str, Tensor] | None) -> None:
    """Mark a model as one that numbers all tokens on one axis. `document` are the arguments of its forward for one with
    an image; None: it has no processor. Raises `ValueError` for a model whose images have one axis already, and for one
    whose axes cannot be counted without a processor."""
    name = model.config.model_type
    if document is None and reads_images(model.config):
        raise ValueError(f"model.one_axis=true: {name} was loaded without its processor, so it reads no images")
    if document is None or heard_axes(model, document) == 1:
        raise ValueError(
            f"model.one_axis=true: {name} has positions on one axis already, and nothing would change: leave it out, "
            "or name a parent whose images have three (Qwen-VL, GLM-4V)"
        )
    setattr(model.config, FLAG, True)


def mark_of(model: PreTrainedModel) -> list[bytes]:
    """What a marked model has in the hash of its weights, so that it is another parent."""
    return [FLAG.encode()] if getattr(model.config, FLAG, False) else []


def apply_one_axis(model: PreTrainedModel) -> None:
    """Number all tokens of a marked model on one axis."""
    if mark_of(model):
        model.get_decoder().register_forward_pre_hook(number_in_sequence, with_kwargs=True)


@torch.no_grad()
def heard_axes(model: PreTrainedModel, document: dict[str, Tensor]) -> int:
    """On how many axes a model hands positions to its decoder for a document with an image."""
    with listening(model.get_decoder()) as heard:
        model.base_model(**document, use_cache=False)
    positions = heard.get("position_ids")
    return min(len(positions), 3) if isinstance(positions, Tensor) and positions.ndim == 3 else 1
