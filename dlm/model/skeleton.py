"""Loads a parent with empty layers, which get their weights where they are sharded: no process ever holds all of them.

transformers loads a *skeleton*: the model with one layer of each type. Its forward is probed as that of any parent, and
what is outside its layers (embedding, head, last norm, rotary positions) goes into a model whose layers are on the meta
device. `Deferred` is where their weights are.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer, PreTrainedConfig, PreTrainedModel
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.utils import logging

from dlm.attention import block_sparse
from dlm.model.deferred import Deferred, weight_files
from dlm.model.implementation import supported, with_attention
from dlm.model.layers import layer_types
from dlm.model.parent import DTYPES, Parent, as_parent, load_parent, require_loadable, resolve
from dlm.model.sharding import sharded_layers
from dlm.model.vision import auto_class, load_config
from dlm.model.weights import require_finite, require_plain_weights
from dlm.trainable.gate import has_gated


def load_for_shards(
    path: str,
    mask_token: str | None = None,
    attn_implementation: str = block_sparse.NAME,
    dtype: str = "float32",
    gguf_file: str | None = None,
    revision: str | None = None,
    trust_remote_code: bool = False,
    check: bool = True,
    one_axis: bool = False,
) -> Parent:
    """The parent of `load_parent` with empty layers, where its files allow that; else as `load_parent` loads it. It has
    the arguments and errors of that."""
    arguments = mask_token, attn_implementation, dtype, gguf_file, revision, trust_remote_code, check, one_axis
    require_loadable(dtype, attn_implementation)
    options = {"revision": revision, "trust_remote_code": trust_remote_code}
    folder = resolve(path)
    if gguf_file is not None or one_axis or has_gated(Path(folder)):
        return load_parent(path, *arguments)
    try:
        if auto_class(load_config(folder, options)) is not AutoModelForCausalLM:
            return load_parent(path, *arguments)  # its tower is no stack of layers of one type
        (skeleton, loading_info), implementation = supported(
            lambda name: load_skeleton(folder, name, DTYPES[dtype], options), attn_implementation
        )
        require_plain_weights(skeleton, path, sorted(loading_info["missing_keys"]), gguf=False)
        require_finite(skeleton, path, dtype)
        tokenizer = AutoTokenizer.from_pretrained(folder, **options)
        parent = as_parent(with_attention(skeleton, implementation), tokenizer, path, mask_token, check)
        found = with_empty_layers(parent.model, folder, implementation, options)
    except Exception:  # whatever a skeleton does not allow: the whole model works, or says what is wrong
        found = None
    if found is None:
        return load_parent(path, *arguments)
    parent.model, parent.deferred = found
    parent.layer_types = layer_types(parent.model)
    return parent


def skeleton_config(config: PreTrainedConfig) -> PreTrainedConfig:
    """The config of a model with one layer of each type."""
    small = copy.deepcopy(config)
    text = small.get_text_config()
    types = getattr(text, "layer_types", None)
    text.num_hidden_layers = len(set(types)) if types else 1
    if types:
        text.layer_types = [*dict.fromkeys(types)]
    return small


def load_skeleton(
    folder: str, implementation: str, dtype: torch.dtype, options: dict[str, Any]
) -> tuple[PreTrainedModel, dict[str, Any]]:
    """The skeleton of a model, and what transformers says of its loading."""
    config, verbosity = AutoConfig.from_pretrained(folder, **options), logging.get_verbosity()
    logging.set_verbosity_error()  # the other layers are left out on purpose
    try:
        return AutoModelForCausalLM.from_pretrained(
            folder,
            config=skeleton_config(config),
            attn_implementation=implementation,
            dtype=dtype,
            use_safetensors=True,
            output_loading_info=True,
            **options,
        )
    finally:
        logging.set_verbosity(verbosity)


def with_empty_layers(
    skeleton: PreTrainedModel, folder: str, implementation: str, options: dict[str, Any]
) -> tuple[PreTrainedModel, Deferred] | None:
    """The whole model, with what is outside the layers from its `skeleton` and with empty layers, and where their
    weights are. None if the files do not hold the weights of the layers by name and shape, so that only transformers
    can read them."""
    config = AutoConfig.from_pretrained(folder, **options)
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(
            config,
            dtype=skeleton.dtype,
            attn_implementation=block_sparse.loaded_as(implementation),
            trust_remote_code=options["trust_remote_code"],
        )
    model = with_attention(model.eval(), implementation)
    graft(model, skeleton)
    model.config.get_text_config().vocab_size = skeleton.config.get_text_config().vocab_size
    model.config.use_cache, model.generation_config = skeleton.config.use_cache, skeleton.generation_config
    layers = {id(p) for layer in sharded_layers(model) for p in layer.parameters()}
    deferred = Deferred(weight_files(folder, options), folder)
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_meta and not (id(tensor) in layers and deferred.has(name, tensor.shape)):
            return None
    return model, deferred


def graft(model: nn.Module, skeleton: nn.Module) -> None:
    """Put all that holds no layers from a skeleton into a model."""
    for kind in ("_parameters", "_buffers"):
        getattr(model, kind).update(getattr(skeleton, kind))
    for name, child in skeleton.named_children():
        if isinstance(child, GradientCheckpointingLayer):
            continue
        if any(isinstance(module, GradientCheckpointingLayer) for module in child.modules()):
            graft(model.get_submodule(name), child)
        else:
            model.register_module(name, child)
