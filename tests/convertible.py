"""Random models of every architecture that can be converted."""

import torch
from common import SHAPE
from transformers import AutoConfig, AutoModelForCausalLM

from dlm.attention import block_sparse

WINDOWS = {"sliding_window": 6, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}
# Softmax attention in every shape: rotary, learned and no positions; soft-capping, sinks, windows, experts, scaling.
CONVERTIBLE = {
    "apertus": {},
    "arcee": {},
    "bitnet": {},
    "cohere": {},
    "cohere2": WINDOWS,
    "ernie4_5": {},
    "gemma": {},
    "gemma2": WINDOWS | {"attn": "eager", "final_logit_softcapping": 30.0},
    "gemma3_text": WINDOWS,
    "glm4": {},
    "gpt2": {},
    "gpt_bigcode": {},
    "gpt_neox": {},
    "gpt_oss": WINDOWS | {"attn": "eager", "num_local_experts": 4},
    "granite": {},
    "granitemoe": {},
    "helium": {},
    "hunyuan_v1_dense": {},
    "mixtral": {},
    "nemotron": {},
    "olmo2": {},
    "opt": {},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2_moe": {},
    "qwen3_moe": {},
    "seed_oss": {},
    "smollm3": {},
    "stablelm": {},
    "starcoder2": {},
}


def random_model(name, attn=block_sparse.NAME, **values):
    torch.manual_seed(0)
    config = AutoConfig.for_model(name, **({"head_dim": 8} | SHAPE | values))
    model = AutoModelForCausalLM.from_config(config, attn_implementation=block_sparse.loaded_as(attn))
    return block_sparse.set_implementation(model, attn).float().eval()
