"""The interface of optimizers: linear warm-up, then cosine decay to a minimum learning rate."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator
from typing import Any

import torch
from transformers import PreTrainedModel, get_cosine_with_min_lr_schedule_with_warmup

from dlm.model.sharding import by_sharding
from dlm.trainable.base import TOWER, vision_parts


class WithCosine(ABC):
    """Builds an optimizer and its schedule, as Lightning's `configure_optimizers` returns them.

    During the fraction `warmup` of the steps every learning rate climbs to its peak; then it falls to `min_lr_ratio`
    times that. `vision_lr` is the peak of a vision tower; None: that of the rest.
    """

    reads_whole_matrices = False  # whether an update of a matrix needs all of it, and so a model without shards

    def __init__(
        self, lr: float, min_lr_ratio: float, warmup: float, weight_decay: float, vision_lr: float | None = None
    ):
        if not lr > 0:
            raise ValueError(f"lr {lr} must be > 0")
        if not (0 <= min_lr_ratio <= 1 and 0 <= warmup < 1):
            raise ValueError(
                f"optimizer.min_lr_ratio {min_lr_ratio} and optimizer.warmup {warmup} must lie in [0, 1] and [0, 1)"
            )
        if weight_decay < 0:
            raise ValueError(f"optimizer.weight_decay {weight_decay} must be >= 0")
        if vision_lr is not None and not vision_lr > 0:
            raise ValueError(
                f"optimizer.vision_lr {vision_lr} must be > 0, or null; trainable.frozen freezes the tower"
            )
        self.lr, self.min_lr_ratio, self.warmup, self.weight_decay = lr, min_lr_ratio, warmup, weight_decay
        self.vision_lr = vision_lr

    def build(self, model: torch.nn.Module, num_steps: int) -> dict[str, Any]:
        """The optimizer of the trainable parameters, and its schedule over `num_steps` optimizer steps."""
        optimizer = self.optimizer(model)
        schedule = get_cosine_with_min_lr_schedule_with_warmup(
            optimizer, round(self.warmup * num_steps), num_steps, min_lr_rate=self.min_lr_ratio
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    @abstractmethod
    def optimizer(self, model: torch.nn.Module) -> torch.optim.Optimizer:
        """The optimizer of the trainable parameters, with the peak learning rates."""

    def by_rate(
        self, model: torch.nn.Module, parameters: Iterable[torch.nn.Parameter]
    ) -> Iterator[tuple[list[torch.nn.Parameter], dict[str, float]]]:
        """Parameters that share their peak learning rate, with it if it is not that of the optimizer. Raises
        `ValueError` for a `vision_lr` of a model without a vision tower."""
        parameters, tower = list(parameters), set()
        if self.vision_lr is not None:
            pretrained = next(module for module in model.modules() if isinstance(module, PreTrainedModel))
            tower = set(vision_parts(pretrained)[TOWER])
        yield [p for p in parameters if p not in tower], {}
        if of_tower := [p for p in parameters if p in tower]:
            yield of_tower, {"lr": self.vision_lr}

    def decayed(self, parameters: list[torch.nn.Parameter]) -> list[dict[str, Any]]:
        """Parameter groups with weight decay on matrices only."""
        matrices, others = [p for p in parameters if p.ndim >= 2], [p for p in parameters if p.ndim < 2]
        return [
            {"params": group, "weight_decay": decay}
            for kind, decay in ((matrices, self.weight_decay), (others, 0.0))
            for group in by_sharding(kind)
        ]
