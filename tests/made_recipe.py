"""What a recipe's composed config makes, on a tiny random model."""

from dataclasses import dataclass

import torch
from common import MASK_ID, config, tiny
from omegaconf import DictConfig

from dlm.config.build import make, make_masking, make_objective
from dlm.conversion.objective import Objective
from dlm.conversion.prepare import corrupt, lay_out
from dlm.masking.base import Masking
from dlm.model.denoiser import Denoiser
from dlm.model.layers import layer_types
from dlm.model.parent import Parent
from dlm.noise_level.base import NoiseLevel
from dlm.types import Batch, Noised, generator

ROWS, LENGTH, SIZE = 2, 16, 4


class Watched(NoiseLevel):
    """Keeps the levels that were drawn."""

    def __init__(self, inner):
        self.inner = inner

    def __call__(self, *args):
        self.seen = self.inner(*args)
        return self.seen


@dataclass
class Recipe:
    """What a recipe's config makes, on a tiny random model; its teachers are the model as it was."""

    cfg: DictConfig
    scorer: Denoiser
    masking: Masking
    objective: Objective

    @property
    def model(self):
        return self.scorer.model

    @property
    def levels(self):
        return self.masking.noise_level.seen

    def draw(self, batch: Batch, seed: int = 0) -> tuple[Batch, Noised]:
        batch = self.scorer.scorable(batch)
        return batch, corrupt(self.scorer, self.masking, batch, generator(seed))

    def loss(self, batch: Batch, noised: Noised):
        """The whole loss, and the auxiliary losses by name."""
        output, found = self.objective(self.scorer, lay_out(self.scorer, batch, noised, self.objective))
        return output.loss, found


def recipe(name: str, *overrides: str, change: float = 0.0) -> Recipe:
    """`change` is how far the model moves from its teachers."""
    cfg, model = config(f"recipe={name}", f"block_size={SIZE}", *overrides), tiny("llama")
    masking, objective = make_masking(cfg), make_objective(cfg)
    masking.noise_level = Watched(masking.noise_level)
    for term in objective.auxiliary.values():
        term.check(make(cfg.attention), masking)
        term.bind(Parent(model, None, MASK_ID, layer_types(model), "test"))
    torch.manual_seed(1)
    for p in model.parameters():
        p.data += change * torch.randn_like(p)
    scorer = Denoiser(model, make(cfg.attention), MASK_ID, cfg.token_shift, layer_types(model))
    return Recipe(cfg, scorer, masking, objective)
