"""Self-speculation: the dLM drafts a block, its own causal mode verifies it (`dlm.decoding.engine.verify`). Two ways of
arranging the forwards:

    linear   one forward drafts, the next verifies (Nemotron-Labs-Diffusion, arXiv 2607.05722)
    fused    one forward verifies the last draft and drafts the next one for every number of tokens that may be accepted
             (TiDAR, arXiv 2511.08923): K rows to verify and K windows of K masks, of which one will be used

Rows of tokens, the prompt's and the draft's, see what an AR model's rows see, so that what is accepted is in the cache
as AR would have it. Rows of a window are a block of the dLM: its pattern says what they see of each other and of the
tokens before them, all of which are clean.
"""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from dlm.decoding.base import Decoder
from dlm.decoding.engine.verify import Cycle, Speculative
from dlm.decoding.fixed import MostConfident


class OwnDrafts(Speculative):
    """Drafts block_size - 1 tokens at a time: the token before them is AR's own, known from the forward that drafts.
    Every forward brings at least that one, so there are never more forwards than in AR decoding."""

    def __init__(self, fused: bool):
        self.fused = fused

    def draft(self, pattern):
        return pattern

    def spare(self, denoiser):
        """The windows lie behind the tokens, in slots that are never filled."""
        size = denoiser.pattern.block_size
        return size * size if self.fused else size

    def cycle(self, denoiser, rule, canvas, request):
        return Drafting(denoiser, rule, canvas, request, self.spare(denoiser), fused=self.fused)


class Drafting(Cycle):
    """Drafts with windows of masks; all sequences draft alike."""

    def __init__(self, *args, fused: bool):
        super().__init__(*args)
        self.fused = fused

    def forward(self) -> None:
        """Verify what was drafted, and draft: always if fused, else where nothing is left to verify."""
        drafted, most = self.drafted, self.size - 1
        windows = drafted + 1 if most and (self.fused or not drafted) else 0
        tokens, masks = self.read(windows)
        accepted = self.verify(self.logits(tokens))
        self.drafted, self.lengths, self.proposal = 0, torch.zeros_like(self.lengths), None
        if windows:
            # A window's first token is the one that verifying has just given. With the shift, row i scores token i + 1.
            rows = masks[torch.arange(len(accepted), device=accepted.device), accepted]
            self.draft(self.logits(rows[:, :-1] if self.both.draft_shift else rows[:, 1:]))

    def draft(self, logits: Float[Tensor, "N M V"]) -> None:
        """The dLM's own tokens, each from its own distribution."""
        token, _ = self.rule.sample(logits, self.request.generator)
        proposal = self.rule.probabilities(logits) if self.rule.temperature > 0 else None
        self.propose(token, torch.full_like(self.lengths, token.shape[1]), proposal)


class SelfSpeculative(Decoder):
    """AR decoding, drafted by the dLM. `confidence` is the token's probability in the causal mode.

    Rows are counted as they are read: with `fused`, K + K * K of them in a forward for blocks of K tokens.
    """

    def __init__(self, fused: bool = False, temperature: float = 0.0, top_p: float = 1.0):
        super().__init__(OwnDrafts(fused), MostConfident(1, temperature, top_p))
