"""Which of a block's predictions are committed in one denoising step.

A decoder sees the confidence of every position that is still masked in the current block and says which to keep. The
engine (`dlm.decoding.engine`) does the rest; where a decoder keeps none, it commits the most confident.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from transformers import TopPLogitsWarper

if TYPE_CHECKING:
    from dlm.decoding.canvas import Generation
    from dlm.denoiser import Denoiser


class Decoder(ABC):
    """Sampling and the commit rule. `temperature` 0 is greedy; `top_p` < 1 samples from the nucleus."""

    def __init__(self, temperature: float = 0.0, top_p: float = 1.0):
        if temperature < 0 or not 0 < top_p <= 1:
            raise ValueError(
                f"decoding.temperature {temperature} must be >= 0 and decoding.top_p {top_p} must lie in (0, 1]"
            )
        self.temperature, self.top_p = temperature, top_p

    @abstractmethod
    def select(self, confidence: Float[Tensor, "N K"], rank: Float[Tensor, "N K"]) -> Bool[Tensor, "N K"]:
        """The positions to commit. `confidence` is -1 where nothing is masked; `rank` orders the masked positions by
        confidence, EOS behind all others, and is -inf where nothing is masked."""

    def sample(
        self, logits: Float[Tensor, "N K V"], generator: torch.Generator | None
    ) -> tuple[Int[Tensor, "N K"], Float[Tensor, "N K"]]:
        """A token for every position, and its probability under the model (at temperature 1) as its confidence."""
        normaliser = logits.logsumexp(-1)
        if self.temperature == 0:
            best, token = logits.max(-1)
            return token, (best - normaliser).exp()
        flat = (logits / self.temperature).flatten(0, 1)
        if self.top_p < 1:
            flat = TopPLogitsWarper(self.top_p)(None, flat)
        token = torch.multinomial(flat.softmax(-1), 1, generator=generator).view(logits.shape[:2])
        return token, (logits.gather(-1, token[..., None])[..., 0] - normaliser).exp()

    def generate(
        self,
        denoiser: Denoiser,
        prompts: list[list[int]],
        max_new_tokens: int,
        eos_id: int | list[int] | None,
        **kwargs,
    ) -> list[Generation]:
        """Decode prompts by this rule, see `engine.generate`. A decoder that reads the canvas in its own way has its
        own loop."""
        from dlm.decoding.engine import generate  # it imports this module

        return generate(denoiser, prompts, self, max_new_tokens, eos_id, **kwargs)
