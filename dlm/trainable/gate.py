"""Adapters that act only where the input token is the mask (I-DLM, arXiv 2604.11035). On inputs without a mask, the
model is its parent, bit for bit.

An update that depends on the token cannot be merged into a matrix. A model's folder therefore holds the weights in the
parent's layout and, in `gated_lora/`, the adapters. Plain transformers ignores the adapters and loads the AR parent.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float
from peft.tuners.lora import LoraLayer
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from dlm.runs.storage import read_json, write_json
from dlm.trainable.adapters import Adapters, adapter_weights, base_weights

FOLDER, SETTINGS, WEIGHTS = "gated_lora", "adapters.json", "adapters.safetensors"


class Gate:
    """A hook before the decoder's forward, which finds the mask tokens in its input, and a hook after each adapter,
    which zeroes its update at all other tokens."""

    def __init__(self, mask_id: int, adapters: Adapters):
        self.mask_id, self.adapters = mask_id, adapters
        self.is_mask: Bool[Tensor, "B S"] | None = None

    def __call__(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError("gated adapters act at mask tokens, so the decoder must be given input_ids")
        self.is_mask = ids == self.mask_id

    def zero_elsewhere(self, lora_b: nn.Module, args: tuple, output: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """The adapter's update where the token is the mask, and -0.0 elsewhere. Adding -0.0 changes no bit of a number,
        while 0.0 turns -0.0 into 0.0."""
        if output.shape[:-1] != self.is_mask.shape:
            raise ValueError(
                f"gated adapters need one row for each of {tuple(self.is_mask.shape)} tokens, and a layer has "
                f"{tuple(output.shape[:-1])} (a mixture of experts?): name other layers in trainable.targets"
            )
        return torch.where(self.is_mask[..., None], output, -0.0)

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """The contexts of a layer's forward and of its recomputation in the backward (`context_fn` of
        `torch.utils.checkpoint`). The second restores the masks of this forward: the model may have read another input
        in between."""
        return nullcontext(), self.with_masks(self.is_mask)

    @contextmanager
    def with_masks(self, is_mask: Bool[Tensor, "B S"]) -> Iterator[None]:
        """Replaces the mask positions within the context."""
        current, self.is_mask = self.is_mask, is_mask
        try:
            yield
        finally:
            self.is_mask = current


def gate_of(model: PreTrainedModel) -> Gate | None:
    """The gate of a model; None if it has no gated adapters."""
    return next((h for h in model.get_decoder()._forward_pre_hooks.values() if isinstance(h, Gate)), None)


def add_gated(model: PreTrainedModel, mask_id: int, adapters: Adapters) -> None:
    """Add adapters and their gate to a model."""
    adapters.add(model)
    gate = Gate(mask_id, adapters)
    model.get_decoder().register_forward_pre_hook(gate, with_kwargs=True)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for lora_b in layer.lora_B.values():
                lora_b.register_forward_hook(gate.zero_elsewhere)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """Save a model as a Hugging Face folder, with its gated adapters in a subfolder."""
    gate = gate_of(model)
    if gate is None:
        model.save_pretrained(folder)
        return
    model.save_pretrained(folder, state_dict=base_weights(model))
    (folder / FOLDER).mkdir()
    save_file({n: t.cpu().contiguous() for n, t in adapter_weights(model).items()}, folder / FOLDER / WEIGHTS)
    write_json(folder / FOLDER / SETTINGS, asdict(gate.adapters))


def has_gated(folder: Path) -> bool:
    """Whether a model's folder holds gated adapters."""
    return (folder / FOLDER).is_dir()


def restore_gated(model: PreTrainedModel, mask_id: int, folder: Path) -> None:
    """Add the gated adapters of a folder, if it has any, to the model loaded from it. `ValueError` if they are damaged
    or belong to another model."""
    if not has_gated(folder):
        return
    try:
        add_gated(model, mask_id, Adapters(**read_json(folder / FOLDER / SETTINGS)))
        saved, expected = load_file(folder / FOLDER / WEIGHTS), adapter_weights(model)
        if saved.keys() != expected.keys():
            raise ValueError("its weights are another model's")
        model.load_state_dict(saved, strict=False)
    except (OSError, ValueError, TypeError, RuntimeError, SafetensorError) as error:
        raise ValueError(
            f"the gated adapters in {str(folder / FOLDER)!r} are damaged ({error}): restore the folder from a copy, or "
            "train the run again with force=true"
        ) from error
