"""The autoregressive mode of a converted model: its own weights under causal attention, one token per forward.

What the conversion has left of the parent, and, for recipes that keep an AR loss (TiDAR, arXiv 2511.08923;
Nemotron-Labs-Diffusion, arXiv 2607.05722), a second way to use the same checkpoint.
"""

from __future__ import annotations

from dlm.attention.ar import AR as CausalPattern
from dlm.decoding.base import Decoder
from dlm.decoding.engine.loop import Blocks
from dlm.decoding.fixed import MostConfident
from dlm.model.denoiser import Denoiser


class Causal(Blocks):
    """Blocks of one token, whatever pattern and token shift the dLM was trained with."""

    def mode(self, denoiser):
        """The same model under causal attention, which scores every token from the one before it."""
        return Denoiser(denoiser.model, CausalPattern(), denoiser.mask_id, True, denoiser.layer_types)


class AR(Decoder):
    """Decodes as an AR model."""

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(Causal(), MostConfident(1, temperature, top_p))
