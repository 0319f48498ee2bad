"""Distillation: the student learns a frozen teacher's predictions of the scored tokens (D2F, OPDLM). The teacher is the
AR parent or a bidirectional dLM."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from dlm.auxiliary.base import Forward
from dlm.auxiliary.confidence import finite
from dlm.auxiliary.teacher import Taught, Teacher

LogP = Float[Tensor, "M V"]


class Distill(Taught):
    """The divergence between the teacher's and the student's distribution of every scored token, in nats. Each token
    has weight 1, or its likelihood weight if `by_weight` (D2F divides by t).

    `divergence`: `forward` is KL(teacher || student), `reverse` KL(student || teacher), `js` Jensen-Shannon.
    """

    def __init__(self, weight: float, teacher: Teacher, divergence: str = "forward", by_weight: bool = False):
        super().__init__(weight, teacher)
        if divergence not in DIVERGENCES:
            raise ValueError(
                f"auxiliary.distill.divergence {divergence!r} is unknown: choose one of {', '.join(DIVERGENCES)}"
            )
        self.divergence, self.by_weight = divergence, by_weight

    def forwards(self, denoiser, needs):
        return [Forward(self.teacher.denoiser, needs.inputs, len(needs.valid))]

    def of_logits(self, denoiser, hidden, scored, needs):
        teacher_hidden, diverge = self.teacher.hidden(needs.inputs), DIVERGENCES[self.divergence]
        weight = scored.weight * needs.valid if self.by_weight else needs.valid.float()

        def divergence(logits, chunk):
            target = finite(self.teacher.logits(teacher_hidden[chunk])).log_softmax(-1)
            return weight[chunk] * diverge(target, finite(logits).log_softmax(-1))

        return divergence


def forward(teacher: LogP, student: LogP) -> Float[Tensor, " M"]:
    return (teacher.exp() * (teacher - student)).sum(-1)


def reverse(teacher: LogP, student: LogP) -> Float[Tensor, " M"]:
    return forward(student, teacher)


def js(teacher: LogP, student: LogP) -> Float[Tensor, " M"]:
    mixture = torch.logaddexp(teacher, student) - math.log(2)
    return (forward(teacher, mixture) + forward(student, mixture)) / 2


DIVERGENCES: dict[str, Callable[[LogP, LogP], Float[Tensor, " M"]]] = {f.__name__: f for f in (forward, reverse, js)}
