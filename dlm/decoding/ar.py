"""The autoregressive mode of a converted model: its own weights under causal attention, one token per forward.

What the conversion has left of the parent, and, for recipes that keep an AR loss (TiDAR, arXiv 2511.08923;
Nemotron-Labs-Diffusion, arXiv 2607.05722), a second way to use the same checkpoint.
"""

from __future__ import annotations

from dlm.attention.ar import AR as Causal
from dlm.decoding.fixed import Fixed
from dlm.model.denoiser import Denoiser


class AR(Fixed):
    """Decodes as an AR model, whatever pattern and token shift the dLM was trained with."""

    def __init__(self, **kwargs):
        super().__init__(tokens_per_step=1, **kwargs)

    def generate(self, denoiser, prompts, max_new_tokens, eos_id, **kwargs):
        causal = causal_mode(denoiser).train(denoiser.training)
        return super().generate(causal, prompts, max_new_tokens, eos_id, **kwargs)


def causal_mode(denoiser: Denoiser) -> Denoiser:
    """The same model under causal attention, which scores every token from the one before it."""
    return Denoiser(denoiser.model, Causal(), denoiser.mask_id, True, denoiser.layer_types)
