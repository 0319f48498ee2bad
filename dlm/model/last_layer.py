"""Leave out of the last layer what nobody reads: an exact saving, for any pattern.

The rows of a layer are seen by the next one; those of the last are read by the head alone, and of [noisy ; clean] the
head reads the rows that score a masked token, about a quarter. An MLP makes each row of itself, so in the last layer it
works on the rows that are read. Attention has them all still: they are its keys and values.
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
    """The last layer of a model, and its MLP where that is a module of its own which takes hidden states and nothing
    else (else None, and all rows are computed)."""

    def __init__(self, model: PreTrainedModel):
        self.model = model
        layers = [m for m in model.get_decoder().modules() if isinstance(m, GradientCheckpointingLayer)]
        self.layer = layers[-1] if layers else None
        mlp = getattr(self.layer, "mlp", None)
        alone = isinstance(mlp, nn.Module) and len(inspect.signature(mlp.forward).parameters) == 1
        self.mlp = mlp if alone else None

    def rows(self, inputs: ModelInputs) -> Int[Tensor, " R"] | None:
        """The rows that the MLP works on, flat in [B S]. None, all, where it is not known which are read, or something
        needs all: a backward that computes the layer again, without the hooks of its forward, or adapters that know
        their tokens by where they are."""
        again = getattr(self.layer, "gradient_checkpointing", False) and self.layer.training
        needs_all = self.mlp is None or again or gate_of(self.model) is not None
        return None if needs_all else inputs.read

    def reading(self, inputs: ModelInputs) -> AbstractContextManager[None]:
        """Within, the MLP works on these rows."""
        rows = self.rows(inputs)
        return nullcontext() if rows is None else on_rows(self.mlp, rows)


@contextmanager
def on_rows(mlp: nn.Module, rows: Int[Tensor, " R"]) -> Iterator[None]:
    """Within, an MLP works on `rows` (flat in [B S], each once) and makes zeros of the others."""
    shapes = []

    def gather(module: nn.Module, args: tuple[Float[Tensor, "B S D"]]) -> Float[Tensor, "1 R D"]:
        shapes.append(args[0].shape)
        return args[0].flatten(0, 1).index_select(0, rows)[None]

    def scatter(module: nn.Module, args: Any, output: Any) -> Any:
        shape, (made, *beside) = shapes.pop(), output if isinstance(output, tuple) else (output,)
        whole = made.new_zeros(shape.numel() // shape[-1], shape[-1]).index_copy_(0, rows, made[0]).view(shape)
        return (whole, *beside) if isinstance(output, tuple) else whole  # some give what their router says as well

    hooks = [mlp.register_forward_pre_hook(gather), mlp.register_forward_hook(scatter)]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()
