"""Activation checkpointing of a parent's layers."""

from __future__ import annotations

from transformers import PreTrainedModel

from dlm.trainable.gate import gate_of


def checkpoint_activations(model: PreTrainedModel) -> None:
    """Turn on activation checkpointing: only the inputs of layers are saved, and the backward recomputes the rest."""
    # Older releases of transformers have the second name only.
    enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
    gate = gate_of(model)
    enable({"use_reentrant": False} | ({} if gate is None else {"context_fn": gate.contexts}))
