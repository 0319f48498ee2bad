"""The autoregressive mode of a converted model: its own weights under causal attention, one token per forward.

It shows how much of the parent the conversion has preserved. Recipes that keep an AR loss (TiDAR, arXiv 2511.08923;
Nemotron-Labs-Diffusion, arXiv 2607.05722) use it as a second mode of the same checkpoint.
"""

from __future__ import annotations

from dlm.attention.ar import AR as CausalPattern
from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.fixed import MostConfident
from dlm.model.denoiser import Denoiser


class Causal(Blocks):
    """Decodes blocks of one token, for any pattern and token shift of the dLM."""

    def mode(self, denoiser):
        """The same model under causal attention, which scores every token from the one before it."""
        pattern, types = CausalPattern(), denoiser.layer_types
        return Denoiser(denoiser.model, pattern, denoiser.mask_id, True, types, denoiser.span_ids)


class AR(Decoder):
    """Decodes like an AR model."""

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(Causal(), MostConfident(1, temperature, top_p))
