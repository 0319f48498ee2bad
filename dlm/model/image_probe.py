"""How a model reads images, found out by one document that has some."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from dlm.attention.ar import AR
from dlm.errors import one_line
from dlm.model.closeness import distance, tolerance
from dlm.model.context import given_tokens, listening, refusal
from dlm.model.denoiser import Denoiser
from dlm.types import Batch, Images, Noised


@torch.no_grad()
def span_ids(model: PreTrainedModel, document: dict[str, Tensor]) -> tuple[int, ...]:
    """The ids of image tokens that see each other both ways under the model's own mask; none where it is causal.
    `document` are the arguments of the model's forward for one document with an image."""
    with listening(model.get_decoder()) as heard:
        model.base_model(**document, use_cache=False)
    masks = heard.get("attention_mask")
    mask = masks["full_attention"] if isinstance(masks, dict) else masks
    if not isinstance(mask, Tensor) or mask.ndim != 4:
        return ()
    seen = mask[0, 0] if mask.dtype == torch.bool else mask[0, 0] == 0
    ahead = (seen & torch.ones_like(seen).triu(1)).any(1)
    given = given_tokens(model, document["input_ids"], heard["inputs_embeds"])[0]
    return tuple(document["input_ids"][0, ahead & given].unique().tolist())


@torch.no_grad()
def check_images(model: PreTrainedModel, types: dict[str, int | None], document: dict[str, Tensor]) -> tuple[int, ...]:
    """The `span_ids` of a model. Raises `ValueError`, with its name and the reason, if its decoder, given token by
    token what it hears, does not give the logits of its own forward."""
    training, document = model.training, {name: value.to(model.device) for name, value in document.items()}
    model.eval()
    try:
        own = model(**document, use_cache=False).logits[0, :-1].float()
        spans = span_ids(model, document)
        denoiser = Denoiser(model, AR(), 0, True, types, spans)
        ids = document["input_ids"].cpu()
        every = torch.ones_like(ids, dtype=torch.bool)
        images = Images.of({name: value.cpu() for name, value in document.items()})
        batch = Batch(ids, every, torch.zeros_like(ids), torch.arange(ids.shape[1])[None], images=({0: images},))
        inputs, _ = denoiser.inputs(denoiser.scorable(batch), Noised(ids, every & (batch.position > 0), every.float()))
        gap = distance(denoiser(inputs.to(model.device))[:, 1:], own[:, 1:])  # token 0 stands for the mask token
    except ValueError:
        raise
    except Exception as error:  # a foreign forward may raise anything
        raise ValueError(refusal(model, one_line(error))) from error
    finally:
        model.train(training)
    if gap > tolerance(model.dtype):
        raise ValueError(
            refusal(model, f"what its decoder is given token by token does not give its own logits, by {gap:.2g}")
        )
    return spans
