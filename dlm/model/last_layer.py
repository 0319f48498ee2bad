"""Skip rows of the last MLP that no loss depends on: an exact saving, for any pattern.

The next layer sees all rows of a layer, but only the head reads those of the last one. Of [noisy ; clean] it reads the
rows that score a token, about a quarter. An MLP computes each row from itself alone, so in the last layer it needs only
these rows. Attention still needs all of them, as keys and values.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer

from dlm.trainable.gate import gate_of
from dlm.types import ModelInputs


class LastLayer:
    """The last layer of a model, and its MLP if that is a module whose only input is hidden states (else None, and all
    rows are computed)."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        layers = [m for m in model.get_decoder().modules() if isinstance(m, GradientCheckpointingLayer)]
        self.layer = layers[-1] if layers else None
        mlp = getattr(self.layer, "mlp", None)
        separable = isinstance(mlp, nn.Module) and len(inspect.signature(mlp.forward).parameters) == 1
        self.mlp = mlp if separable else None

    def rows(self, inputs: ModelInputs) -> Int[Tensor, " R"] | None:
        """The rows that the MLP computes, flat in [B S]. None means all: it is not known which are read, or gradient
        checkpointing recomputes the layer without the hooks of its forward, or gated adapters identify tokens by their
        index."""
        recomputed = getattr(self.layer, "gradient_checkpointing", False) and self.layer.training
        needs_all = self.mlp is None or recomputed or gate_of(self.model) is not None
        return None if needs_all else inputs.read

    def reading(self, inputs: ModelInputs) -> AbstractContextManager[None]:
        """A context in which the MLP computes only these rows."""
        rows = self.rows(inputs)
        return nullcontext() if rows is None else on_rows(self.mlp, rows)


@contextmanager
def on_rows(mlp: nn.Module, rows: Int[Tensor, " R"]) -> Iterator[None]:
    """A context in which an MLP computes only `rows` (flat in [B S], without duplicates) and returns zeros for the
    others."""
    shapes = []

    def gather(module: nn.Module, args: tuple[Float[Tensor, "B S D"]]) -> Float[Tensor, "1 R D"]:
        shapes.append(args[0].shape)
        return args[0].flatten(0, 1).index_select(0, rows)[None]

    def scatter(module: nn.Module, args: Any, output: Any) -> Any:
        shape, (hidden, *others) = shapes.pop(), output if isinstance(output, tuple) else (output,)
        whole = hidden.new_zeros(shape.numel() // shape[-1], shape[-1]).index_copy_(0, rows, hidden[0]).view(shape)
        return (whole, *others) if isinstance(output, tuple) else whole  # some also return router logits

    hooks = [mlp.register_forward_pre_hook(gather), mlp.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
