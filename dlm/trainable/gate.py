"""Adapters that act only where the input token is the mask (I-DLM, arXiv 2604.11035), so that a model which reads no
mask is its parent, bit for bit.

An update that depends on the token cannot be merged into a matrix. A model's folder therefore holds the parent's layout
as usual and, beside it, `gated_lora/` with the adapters. Plain transformers sees the first and loads the AR parent.
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
from dlm.trainable.adapters import Adapters, adapter_weights, own_weights

FOLDER, SETTINGS, WEIGHTS = "gated_lora", "adapters.json", "adapters.safetensors"


class Gate:
    """A hook before the decoder's forward that finds the masks in its input, and one after each adapter that shuts it
    elsewhere."""

    def __init__(self, mask_id: int, adapters: Adapters):
        self.mask_id, self.adapters = mask_id, adapters
        self.is_mask: Bool[Tensor, "B S"] | None = None

    def __call__(self, decoder: nn.Module, args: tuple, kwargs: dict[str, Any]) -> None:
        ids = kwargs.get("input_ids", args[0] if args else None)
        if ids is None:
            raise ValueError("gated adapters act at mask tokens, so the decoder must be given input_ids")
        self.is_mask = ids == self.mask_id

    def shut(self, lora_b: nn.Module, args: tuple, output: Float[Tensor, "B S D"]) -> Float[Tensor, "B S D"]:
        """The adapter's update where the token is the mask. Elsewhere -0.0, which changes no bit of what it is added
        to."""
        if output.shape[:-1] != self.is_mask.shape:
            raise ValueError(
                f"gated adapters need one row for each of {tuple(self.is_mask.shape)} tokens, and a layer has "
                f"{tuple(output.shape[:-1])} (a mixture of experts?): name other layers in trainable.targets"
            )
        return torch.where(self.is_mask[..., None], output, -0.0)

    def contexts(self) -> tuple[AbstractContextManager, AbstractContextManager]:
        """For a layer's forward, and for computing it again in the backward, when the model may have read something
        else in between (`context_fn` of `torch.utils.checkpoint`)."""
        return nullcontext(), self.again(self.is_mask)

    @contextmanager
    def again(self, is_mask: Bool[Tensor, "B S"]) -> Iterator[None]:
        now, self.is_mask = self.is_mask, is_mask
        try:
            yield
        finally:
            self.is_mask = now


def gate_of(model: PreTrainedModel) -> Gate | None:
    """The gate of a model that has one."""
    return next((h for h in model.get_decoder()._forward_pre_hooks.values() if isinstance(h, Gate)), None)


def add_gated(model: PreTrainedModel, mask_id: int, adapters: Adapters) -> None:
    """Put adapters into a model, with their gate."""
    adapters.add(model)
    gate = Gate(mask_id, adapters)
    model.get_decoder().register_forward_pre_hook(gate, with_kwargs=True)
    for layer in model.modules():
        if isinstance(layer, LoraLayer):
            for lora_b in layer.lora_B.values():
                lora_b.register_forward_hook(gate.shut)


def save_model(model: PreTrainedModel, folder: Path) -> None:
    """A model as a Hugging Face folder, its gated adapters beside it."""
    gate = gate_of(model)
    if gate is None:
        model.save_pretrained(folder)
        return
    model.save_pretrained(folder, state_dict=own_weights(model))
    (folder / FOLDER).mkdir()
    save_file({n: t.cpu().contiguous() for n, t in adapter_weights(model).items()}, folder / FOLDER / WEIGHTS)
    write_json(folder / FOLDER / SETTINGS, asdict(gate.adapters))


def has_gated(folder: Path) -> bool:
    """Whether a model's folder holds gated adapters."""
    return (folder / FOLDER).is_dir()


def restore_gated(model: PreTrainedModel, mask_id: int, folder: Path) -> None:
    """Give a model that was loaded from a folder the gated adapters that are in it, if any. `ValueError` where they are
    damaged or another model's."""
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
