"""Representation alignment: the hidden states of every layer stay close to the frozen causal parent's (REPR-ALIGN)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dlm.auxiliary.base import Forward
from dlm.auxiliary.teacher import Taught


class Align(Taught):
    """1 - cos between the student's and the teacher's hidden states, averaged over the layers, at the rows that score
    tokens. The student reads the corrupted text, the teacher the clean one."""

    reads_states = True

    def forwards(self, denoiser, needs):
        return [Forward(self.teacher.denoiser, needs.inputs, 0)]

    def of_states(self, denoiser, states, extra, num_tokens, needs):
        teacher_states, num = self.teacher.states(needs.inputs), len(needs.valid)
        # The embeddings are left out: the student's is that of [MASK].
        pairs = zip(states[1:], teacher_states[1:], strict=True)
        distances = [1 - F.cosine_similarity(wide(ours[:num]), wide(theirs), dim=-1) for ours, theirs in pairs]
        return (torch.stack(distances).mean(0) * needs.valid).sum() / num_tokens


def wide(states: Float[Tensor, "N D"]) -> Float[Tensor, "N D"]:
    """The states in float32 or wider."""
    return states.to(torch.promote_types(states.dtype, torch.float32))
