"""Trainable sets: which weights of a parent are trained, and the parts of a model that they can name."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable

from torch import nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

PARTS = ("embedding", "norm", "head")
TOWER, CONNECTOR = "vision_tower", "connector"
# What is between a vision tower and a language model has one of these in its name, in all of transformers.
CONNECTORS = ("projector", "connector", "merger", "aligner")


class Trainable(ABC):
    """Selects the weights that are trained. An object serves one model at a time."""

    adds_weights = False  # beside the model's own, which are read for that
    quantises = False  # frozen weights, in `ready`

    @abstractmethod
    def apply(self, model: PreTrainedModel, mask_id: int) -> PreTrainedModel:
        """The model, changed in place, with `requires_grad` on exactly the trained weights. Contract: before training,
        its outputs are bit for bit those of the unchanged model."""

    def quantised(self, model: PreTrainedModel) -> list[nn.Parameter]:
        """The weights that `ready` puts into four bits."""
        return []

    def ready(self, model: PreTrainedModel) -> None:  # noqa: B027  (optional)
        """Called once before training, when the parent's weights are recorded. Raises `ValueError` if the model cannot
        be trained in this way."""

    def merged(self, model: PreTrainedModel) -> PreTrainedModel:
        """The trained model in the parent's own layout, as far as this layout can express it."""
        return model


def parameters_of(model: PreTrainedModel, parts: Iterable[str]) -> set[int]:
    """The `id` of every parameter of these parts. A tied weight belongs to both the embedding and the head.
    `ValueError` for an unknown part."""
    unknown = set(parts) - set(PARTS)
    if unknown:
        raise ValueError(f"trainable: {', '.join(sorted(unknown))} is no part of a model: choose {', '.join(PARTS)}")
    modules = {
        "embedding": [model.get_input_embeddings()],
        "head": [model.get_output_embeddings()],
        "norm": [m for m in model.modules() if "norm" in type(m).__name__.lower()],
    }
    return {id(p) for part in parts for m in modules[part] for p in m.parameters()}


def vision_parts(model: PreTrainedModel) -> dict[str, list[nn.Parameter]]:
    """The parameters of a model's vision tower, and of the connector between it and the language model. Raises
    `ValueError` for a model that has none."""
    of_text = (model.get_decoder(), model.get_input_embeddings(), model.get_output_embeddings())
    text = {id(p) for module in of_text for p in module.parameters()}
    parts: dict[str, list[nn.Parameter]] = {TOWER: [], CONNECTOR: []}
    for name, parameter in model.named_parameters():
        if id(parameter) not in text:
            parts[CONNECTOR if any(part in name for part in CONNECTORS) else TOWER].append(parameter)
    if not all(parts.values()):
        raise ValueError(
            f"{model.config.model_type} has no vision tower with a connector: it reads text only. trainable=connector, "
            "trainable.frozen and optimizer.vision_lr need a parent that reads images: python -m dlm.compose makes one"
        )
    return parts


def linear_layers(model: PreTrainedModel) -> dict[str, nn.Module]:
    """The linear layers of the decoder (the matrices of attention and FFN), by their names in it."""
    return {name: m for name, m in model.get_decoder().named_modules() if isinstance(m, (nn.Linear, Conv1D))}
