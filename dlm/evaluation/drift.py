"""Weight drift: the distance of a converted model's weights from its parent's, tensor by tensor.

The parent is read from a safetensors file one tensor at a time, so no second model is held in memory. Efficient-DLM
plots an "average difference" per layer without defining it. Three definitions are reported:

    mean_abs    mean |W - W0|          relative    ||W - W0||_F / ||W0||_F          one_minus_cos    1 - cos(W, W0)
"""

from __future__ import annotations

import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pandas as pd
import torch
from peft.tuners.lora import LoraLayer
from safetensors import safe_open
from safetensors.torch import save_file
from transformers import PreTrainedModel

from dlm.model.deferred import Deferred
from dlm.model.sharding import whole
from dlm.trainable.quantised import dense

MEASURES = ("mean_abs", "relative", "one_minus_cos")
LAYER = re.compile(r"\.(\d+)\.")
ATTENTION = re.compile(r"attn|attention")
FFN = re.compile(r"mlp|feed_forward|ffn|expert")


def save_reference(model: PreTrainedModel, path: Path, deferred: Deferred | None = None) -> None:
    """Write the weights that drift is measured against, unless the file exists already. Those of empty layers come
    from `deferred` files, which are mapped into memory and not read into it."""
    if path.exists():
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_suffix(f".{os.getpid()}.tmp")
    weights = {
        name: deferred.read(name) if weight.is_meta else weight.detach().cpu().contiguous().clone()
        for name, weight in effective_weights(model)
    }
    save_file(weights, temporary)
    temporary.rename(path)


def effective_weights(
    model: PreTrainedModel, skip: Callable[[torch.Tensor], bool] = lambda weight: False
) -> Iterator[tuple[str, torch.Tensor]]:
    """The model's weights under the parent's names, with low-rank updates added, without those to `skip`; tied weights
    appear once. Where the model is sharded, all processes must take all of them."""
    adapters = {name: m for name, m in model.named_modules() if isinstance(m, LoraLayer)}
    for name, weight in model.named_parameters():
        if "lora_" in name or skip(weight):
            continue
        weight = dense(weight)
        owner, _, leaf = name.rpartition(".")
        owner = owner.removesuffix(".base_layer")
        if owner in adapters and leaf == "weight":
            weight = weight + sum(adapters[owner].get_delta_weight(a) for a in adapters[owner].active_adapters)
        yield f"{owner}.{leaf}", whole(weight)


@torch.no_grad()
def measure(model: PreTrainedModel, reference: Path) -> pd.DataFrame:
    """One row per tensor: `tensor, layer, kind, numel` and the three measures, exactly 0 if it is unchanged.

    An embedding that was enlarged for the mask token is compared on the parent's rows only.
    """
    rows = []
    with safe_open(reference, framework="pt") as parent:
        for name, weight in effective_weights(model):
            before = parent.get_tensor(name).to(weight.dtype).double()  # as it was when training began
            after = weight.detach().cpu().double()[: before.shape[0]]
            rows.append(
                {"tensor": name, "layer": layer_of(name), "kind": kind_of(name, model), "numel": before.numel()}
                | difference(before, after)
            )
    return pd.DataFrame(rows)


def difference(before: torch.Tensor, after: torch.Tensor) -> dict[str, float]:
    """The three measures for one tensor, in float64. One that began as zeros, such as the bias of a new layer, has no
    length or direction to compare with: two of them are NaN."""
    delta, norm = after - before, before.norm()
    if not delta.any():
        return dict.fromkeys(MEASURES, 0.0)
    mean_abs = delta.abs().mean().item()
    if norm == 0:
        return {"mean_abs": mean_abs, "relative": math.nan, "one_minus_cos": math.nan}
    cosine = (before * after).sum() / (norm * after.norm()).clamp_min(1e-300)
    return {
        "mean_abs": mean_abs,
        "relative": (delta.norm() / norm).item(),
        "one_minus_cos": (1 - cosine).clamp_min(0).item(),
    }


def layer_of(name: str) -> int:
    """The index of the layer a tensor belongs to; -1 outside the layers."""
    match = LAYER.search(name)
    return int(match[1]) if match else -1


def kind_of(name: str, model: PreTrainedModel) -> str:
    """The kind of a tensor: attention, ffn, norm, embedding, head or other."""
    owner = model.get_submodule(name.rpartition(".")[0])
    if owner is model.get_input_embeddings():
        return "embedding"
    if owner is model.get_output_embeddings():
        return "head"
    if "norm" in type(owner).__name__.lower():
        return "norm"
    if ATTENTION.search(name):
        return "attention"
    return "ffn" if FFN.search(name) else "other"


def by_layer(drift: pd.DataFrame) -> pd.DataFrame:
    """One row per layer and kind: every measure averaged over the tensors that have it, weighted by their size."""
    measures = drift[list(MEASURES)]
    place = drift[["layer", "kind", "numel"]]
    weighted, weights = (
        place.join(values.mul(drift["numel"], axis=0)).groupby(["layer", "kind"], as_index=False).sum()
        for values in (measures, measures.notna())
    )
    weighted[list(MEASURES)] = weighted[list(MEASURES)].div(weights[list(MEASURES)])
    return weighted[["layer", "kind", *MEASURES, "numel"]]


def summary(drift: pd.DataFrame) -> dict[str, float]:
    """Each kind's measures over all layers, as far as it has them, weighted by size: `attention/relative`, …"""
    total = by_layer(drift.assign(layer=0)).set_index("kind")[list(MEASURES)].stack().dropna()
    return {f"{kind}/{measure}": value for (kind, measure), value in total.items()}
