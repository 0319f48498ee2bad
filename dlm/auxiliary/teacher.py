"""The teacher, a frozen model whose predictions the student learns: the untrained parent or the model of a run."""

from __future__ import annotations

import copy
from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dlm.attention.base import AttentionPattern
from dlm.auxiliary.base import Auxiliary
from dlm.model.denoiser import Denoiser
from dlm.model.parent import Parent, load_run
from dlm.model.trim import trim
from dlm.types import Batch, ModelInputs, Movable, Noised, Scored


@dataclass(frozen=True)
class Lesson(Movable):
    """The teacher's inputs for the tokens that the student scores, and which of these it can score: an AR teacher
    cannot score the first token of a document."""

    inputs: ModelInputs
    valid: Bool[Tensor, " N"]


class Teacher:
    """Scores the tokens that the student scores, under its own attention `pattern`: an AR teacher reads the clean
    tokens before each (pattern AR), a bidirectional one the same noisy tokens (D2F). The model is that of the finished
    `run`; by default it is a copy of the student before training."""

    def __init__(self, pattern: AttentionPattern, token_shift: bool, run: str | None = None, runs_dir: str = "runs"):
        self.pattern, self.token_shift, self.run, self.runs_dir = pattern, token_shift, run, runs_dir
        self.denoiser: Denoiser | None = None

    def bind(self, parent: Parent) -> None:
        """Load or copy the weights. `ValueError` if the teacher has another vocabulary than the student."""
        if self.run is None:
            source = replace(parent, model=copy.deepcopy(parent.model))
        else:
            source = load_run(self.run, self.runs_dir, check=False)
        model = source.model.requires_grad_(False).eval()
        if source.mask_id != parent.mask_id or model.config.vocab_size != parent.model.config.vocab_size:
            raise ValueError(f"the teacher of run {self.run!r} has another vocabulary than the student: choose another")
        types, spans = source.layer_types, source.span_ids
        self.denoiser = Denoiser(model, self.pattern, source.mask_id, self.token_shift, types, spans)

    def __getstate__(self) -> dict:
        """What another process gets: it prepares lessons and has no weights."""
        return vars(self) | {"denoiser": self.denoiser and self.denoiser.without_model()}

    def lesson(self, batch: Batch, noised: Noised, scored: Scored) -> Lesson:
        """The teacher's inputs for the scored tokens, in their order (on the CPU)."""
        inputs, _ = self.denoiser.inputs(batch, noised)
        valid = (batch.position.flatten()[scored.index] > 0) | (not self.token_shift)
        inputs = trim(replace(inputs, scored=torch.where(valid, inputs.scored, 0)))
        return Lesson(inputs.settled(), valid)

    @property
    def nbytes(self) -> int:
        """Bytes of its weights."""
        return sum(p.nbytes for p in self.denoiser.model.parameters())

    @torch.no_grad()
    def states(self, inputs: ModelInputs) -> list[Float[Tensor, "N D"]]:
        """Its hidden states of those tokens, after the embedding and after every layer."""
        self.denoiser.to(inputs.input_ids.device)
        return self.denoiser.states(inputs)

    @torch.no_grad()
    def hidden(self, inputs: ModelInputs) -> Float[Tensor, "N D"]:
        """Its last hidden states of those tokens."""
        self.denoiser.to(inputs.input_ids.device)
        return self.denoiser.read(inputs)

    @torch.no_grad()
    def logits(self, hidden: Float[Tensor, "M D"]) -> Float[Tensor, "M V"]:
        """Logits of some of these hidden states."""
        return self.denoiser.logits(hidden)


class Taught(Auxiliary):
    """A term that compares the student with a teacher at the tokens that the student scores."""

    def __init__(self, weight: float, teacher: Teacher):
        super().__init__(weight)
        self.teacher = teacher

    def bind(self, parent):
        self.teacher.bind(parent)

    @property
    def nbytes(self):
        return self.teacher.nbytes

    def needs(self, layout, batch, noised, scored):
        return None, self.teacher.lesson(batch, noised, scored)
