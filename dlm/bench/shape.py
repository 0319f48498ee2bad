"""A parent of any shape with random weights, its vocabulary as large as it says: speed does not depend on what a model
knows, and this needs no download."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from dlm.attention import block_sparse
from dlm.parent import DTYPES, Parent, as_parent, resolve


def random_parent(
    tokenizer: str,
    seed: int,
    config: dict[str, Any],
    attn_implementation: str = block_sparse.NAME,
    dtype: str = "float32",
    device: str = "cpu",
    check: bool = True,
) -> Parent:
    """`config` is a Hugging Face config with its `model_type` and `vocab_size`. Weights are made on `device`, in
    `dtype`: a large model takes minutes on a CPU."""
    if dtype not in DTYPES:
        raise ValueError(f"model.dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
    loaded = AutoTokenizer.from_pretrained(resolve(tokenizer))
    if config["vocab_size"] <= len(loaded):
        raise ValueError(f"model.config.vocab_size {config['vocab_size']} must exceed the tokenizer's {len(loaded)}")
    values = {name: value for name, value in config.items() if name != "model_type"}
    ends = {"eos_token_id": loaded.eos_token_id, "pad_token_id": loaded.pad_token_id}
    hf_config = AutoConfig.for_model(config["model_type"], **values, **ends)
    with torch.random.fork_rng(), torch.device(device):
        torch.manual_seed(seed)
        model = AutoModelForCausalLM.from_config(
            hf_config, attn_implementation=block_sparse.loaded_as(attn_implementation), dtype=DTYPES[dtype]
        )
    model = block_sparse.set_implementation(model, attn_implementation)
    return as_parent(model, loaded, f"random {config['model_type']}", None, check)
