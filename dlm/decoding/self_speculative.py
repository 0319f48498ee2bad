"""Self-speculation: the dLM drafts a block, its own causal mode verifies it (`dlm.decoding.verify`). Two ways of
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
from jaxtyping import Float, Int
from torch import Tensor

from dlm.decoding.ar import AR
from dlm.decoding.canvas import Canvas, Generation
from dlm.decoding.step import Stop, advance
from dlm.decoding.verify import Cycle, speculate
from dlm.model.denoiser import Denoiser


class SelfSpeculative(AR):
    """Drafts block_size - 1 tokens at a time: the token before them is AR's own, known from the forward that drafts.
    Every forward brings at least that one, so there are never more forwards than in AR decoding. `confidence` is the
    token's probability in the causal mode.

    Rows are counted as they are read: with `fused`, K + K * K of them in a forward for blocks of K tokens.
    """

    def __init__(self, fused: bool = False, **kwargs):
        super().__init__(**kwargs)
        self.fused = fused

    def generate(
        self,
        denoiser: Denoiser,
        prompts: list[list[int]],
        max_new_tokens: int,
        eos_id: int | list[int] | None,
        generator: torch.Generator | None = None,
        stop: Stop | None = None,
        **loop,
    ) -> list[Generation]:
        """As `engine.generate`; `stop` is asked after every forward."""
        size = denoiser.pattern.block_size
        spare = size * size if self.fused else size

        def cycle(both: Denoiser, canvas: Canvas) -> Cycle:
            return Drafting(self, both, canvas, spare, generator, token_shift=denoiser.token_shift)

        # The windows lie behind the tokens, in slots that are never filled.
        loop |= {"spare": spare}
        return speculate(cycle, denoiser.pattern, denoiser, prompts, max_new_tokens, eos_id, stop, **loop)


class Drafting(Cycle):
    """Drafts with windows of masks, scored with or without the `token_shift`; all sequences draft alike."""

    def __init__(self, *args, token_shift: bool):
        super().__init__(*args)
        self.token_shift = token_shift

    def forward(self, eos_ids: Int[Tensor, " E"], stop: Stop | None) -> None:
        """Verify what was drafted, and draft: always if fused, else where nothing is left to verify."""
        canvas, drafted, most = self.canvas, self.drafted, self.size - 1
        windows = drafted + 1 if most and (self.decoder.fused or not drafted) else 0
        tokens, masks = self.read(windows)
        canvas.nfe += ~canvas.finished
        accepted = self.verify(self.logits(tokens))
        advance(canvas, eos_ids, stop)
        self.drafted, self.lengths, self.proposal = 0, torch.zeros_like(self.lengths), None
        if windows:
            # A window's first token is the one that verifying has just given. With the shift, row i scores token i + 1.
            rows = masks[torch.arange(len(canvas), device=accepted.device), accepted]
            self.draft(self.logits(rows[:, :-1] if self.token_shift else rows[:, 1:]))

    def draft(self, logits: Float[Tensor, "N M V"]) -> None:
        """The dLM's own tokens, each from its own distribution."""
        token, _ = self.decoder.sample(logits, self.generator)
        proposal = self.decoder.probabilities(logits) if self.decoder.temperature > 0 else None
        self.propose(token, torch.full_like(self.lengths, token.shape[1]), proposal)
