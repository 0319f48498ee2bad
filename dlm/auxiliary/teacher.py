"""A frozen model that says what the student should predict: the parent as it began, or the model of another run."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent, load_run
from dlm.model.trim import trim
from dlm.types import Batch, ModelInputs, Movable, Noised, Scored


@dataclass(frozen=True)
class Lesson(Movable):
    """What a teacher reads for the tokens that the student scores, and which of them it can score: an AR teacher has
    nothing to say of a document's first token."""

    inputs: ModelInputs
    valid: Bool[Tensor, " N"]


class Teacher:
    """Scores the tokens that the student scores, each under its own attention `pattern`: the AR parent reads the clean
    tokens before (pattern AR), a bidirectional one the same noisy tokens (D2F). `run` names a finished run whose model
    it is; by default it is a copy of the student's start."""

    def __init__(self, pattern: AttentionPattern, token_shift: bool, run: str | None = None, runs_dir: str = "runs"):
        self.pattern, self.token_shift, self.run, self.runs_dir = pattern, token_shift, run, runs_dir
        self.denoiser: Denoiser | None = None

    def bind(self, parent: Parent) -> None:
        """Take the weights."""
        if self.run is None:
            source = replace(parent, model=copy.deepcopy(parent.model))
        else:
            source = load_run(self.run, self.runs_dir, check=False)
        model = source.model.requires_grad_(False).eval()
        if source.mask_id != parent.mask_id or model.config.vocab_size != parent.model.config.vocab_size:
            raise ValueError(f"the teacher of run {self.run!r} has another vocabulary than the student: choose another")
        self.denoiser = Denoiser(model, self.pattern, source.mask_id, self.token_shift, source.layer_types)

    def lesson(self, batch: Batch, noised: Noised, scored: Scored) -> Lesson:
        """What to read, for the scored tokens in their order (on the CPU)."""
        inputs, _ = self.denoiser.inputs(batch, noised)
        valid = (batch.position.flatten()[scored.index] > 0) | (not self.token_shift)
        inputs = trim(replace(inputs, scored=torch.where(valid, inputs.scored, 0)))
        return Lesson(inputs.settled(), valid)

    @property
    def nbytes(self) -> int:
        """What its weights take."""
        return sum(p.nbytes for p in self.denoiser.model.parameters())

    @torch.no_grad()
    def states(self, inputs: ModelInputs) -> list[Float[Tensor, "N D"]]:
        """Its hidden states at those tokens, of every layer."""
        self.denoiser.to(inputs.input_ids.device)
        return self.denoiser.states(inputs)

    @torch.no_grad()
    def hidden(self, inputs: ModelInputs) -> Float[Tensor, "N D"]:
        """Its last hidden states at those tokens."""
        self.denoiser.to(inputs.input_ids.device)
        return self.denoiser.read(inputs)

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """What its head makes of them."""
        return self.denoiser.logits(hidden)
