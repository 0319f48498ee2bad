"""The weights of layers that are empty (on the meta device) until they are sharded: each process reads its rows of them
from the files."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.tensor import DTensor
from transformers import PreTrainedModel
from transformers.utils import cached_file

from dlm.model.sharding import sharded_layers

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Deferred:
    """The weights of the layers of a model, which lie in safetensors `files`, by their names in it."""

    files: dict[str, Path]
    source: str

    def has(self, name: str, shape: torch.Size) -> bool:
        """Whether the files hold a weight of this name and shape."""
        if name not in self.files:
            return False
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_slice(name).get_shape() == [*shape]

    def read(self, name: str, rows: slice = slice(None)) -> Tensor:
        """A weight, or some of its rows, in the precision of the file."""
        with safe_open(self.files[name], framework="pt") as file:
            return file.get_slice(name)[rows]

    @torch.no_grad()
    def fill(self, model: PreTrainedModel) -> None:
        """Give the sharded layers of `model` their weights, each process its rows of them, on the device of the mesh.
        Raises `ValueError` for weights that are not finite."""
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        for layer in sharded_layers(model):
            named = [names[id(parameter)] for parameter in layer.parameters()]
            layer.to_empty(device=next(layer.parameters()).device_mesh.device_type)
            for name, parameter in zip(named, layer.parameters(), strict=True):
                self.fill_rows(name, parameter)

    def fill_rows(self, name: str, parameter: DTensor) -> None:
        """Read this process's rows of a weight that is sharded by rows, as `Tensor.chunk` divides them."""
        local = parameter.to_local()
        size = -(-parameter.shape[0] // parameter.device_mesh.size())
        first = parameter.device_mesh.get_local_rank() * size
        if not len(local):
            return
        local.copy_(self.read(name, slice(first, first + len(local))))
        if num_bad := int((~local.isfinite()).sum()):
            raise ValueError(
                f"model.path {self.source!r}: {num_bad} values of its tensor {name} are not finite in {local.dtype}. "
                "Load it in a wider model.dtype, restore it from its source, or name another model"
            )


def weight_files(folder: str, options: dict[str, Any]) -> dict[str, Path]:
    """The file of every weight of a model, in a folder or on the hub."""
    revision = options.get("revision")
    try:
        index = cached_file(folder, INDEX, revision=revision)
    except OSError:  # there is none
        path = Path(cached_file(folder, SINGLE, revision=revision))
        with safe_open(path, framework="pt") as file:
            return dict.fromkeys(file.keys(), path)
    names = json.loads(Path(index).read_text(encoding="utf-8"))["weight_map"]
    paths = {file: Path(cached_file(folder, file, revision=revision)) for file in set(names.values())}
    return {name: paths[file] for name, file in names.items()}
