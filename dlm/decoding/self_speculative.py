"""Self-speculation: the dLM drafts a block, and its causal mode verifies it (`dlm.decoding.engine.verify`). There are
two ways of arranging the forwards:

    linear   one forward drafts, the next verifies (Nemotron-Labs-Diffusion, arXiv 2607.05722)
    fused    one forward verifies the last draft and drafts the next one for every possible number of accepted tokens
             (TiDAR, arXiv 2511.08923): K rows to verify and K windows of K masks, of which one is used

The rows of tokens, in prompt and draft, see what they would see in an AR model, so that accepted tokens are in the
cache exactly as with AR. The rows of a window are a block of the dLM: its pattern decides what they see of each other
and of the tokens before them, all of which are clean.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.verify import Cycle, Speculative
from dlm.decoding.fixed import MostConfident


class OwnDrafts(Speculative):
    """Drafts block_size - 1 tokens at a time, after one token that AR writes in the drafting forward. Every forward
    commits at least that one, so there are never more forwards than in AR decoding."""

    def __init__(self, fused: bool):
        self.fused = fused

    def draft(self, pattern):
        return pattern

    def spare(self, denoiser):
        """The slots of the windows, after those of the tokens."""
        size = denoiser.pattern.block_size
        return size * size if self.fused else size

    def cycle(self, denoiser, rule, canvas, request):
        return Drafting(denoiser, rule, canvas, request, self.spare(denoiser), fused=self.fused)


class Drafting(Cycle):
    """Drafts with windows of masks; the drafts of all sequences are equally long."""

    def __init__(self, *args, fused: bool):
        super().__init__(*args)
        self.fused = fused

    def forward(self) -> None:
        """Verify the last draft, and make the next one: always if fused, else if there was no draft to verify."""
        drafted, draft_size = self.drafted, self.size - 1
        windows = drafted + 1 if draft_size and (self.fused or not drafted) else 0
        token_states, window_states = self.read(windows)
        accepted = self.verify(self.logits(token_states))
        self.drafted, self.lengths, self.proposal = 0, torch.zeros_like(self.lengths), None
        if windows:
            # Verification has just given a window's first token. With the shift, row i scores token i + 1.
            rows = window_states[torch.arange(len(accepted), device=accepted.device), accepted]
            self.draft(self.logits(rows[:, :-1] if self.verifier.draft_shift else rows[:, 1:]))

    def draft(self, logits: Float[Tensor, "B M V"]) -> None:
        """Draft the tokens that the dLM predicts, each independently of the others."""
        token, _ = self.rule.sample(logits, self.request.generator)
        proposal = self.rule.probabilities(logits) if self.rule.temperature > 0 else None
        self.propose(token, torch.full_like(self.lengths, token.shape[1]), proposal)


class SelfSpeculative(Decoder):
    """AR decoding with drafts by the dLM. `Generation.confidence` is the probability of a token in the causal mode, and
    `Generation.rows` counts every row that is read: with `fused`, K + K * K per forward for blocks of K tokens."""

    def __init__(self, fused: bool = False, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(OwnDrafts(fused), MostConfident(1, temperature, top_p))
