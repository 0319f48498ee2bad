"""Tests of the GPU paths: every one runs on a CPU as well, so that only kernels are new on a GPU.

`python -m pytest tests/gpu` needs torch, transformers, lightning, peft, jaxtyping and pytest, and no test package.
"""

import lightning  # noqa: F401  replaces torch.compile by its own, as in every run
import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from dlm.attention import block_sparse
from dlm.attention.base import AttentionPattern
from dlm.model.denoiser import Denoiser
from dlm.types import Batch

VOCAB, MASK_ID, EOS_ID = 256, 255, 0
# Query heads to key heads, with 128 dimensions a head as in the real models. A ratio that is no power of two and one
# that is take different kernels.
HEADS = {
    "qwen2-12:2": ("qwen2", {"num_attention_heads": 12, "num_key_value_heads": 2}),
    "qwen3-32:8": ("qwen3", {"num_attention_heads": 32, "num_key_value_heads": 8}),
}
SHAPE = {
    "vocab_size": VOCAB,
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "head_dim": 128,
    "initializer_range": 0.1,
    "eos_token_id": EOS_ID,
    "bos_token_id": None,
}


@pytest.fixture(params=["cpu", "cuda"])
def device(request) -> str:
    if request.param == "cuda" and not torch.cuda.is_available():
        pytest.skip("needs a CUDA device")
    return request.param


def random_model(architecture: str, implementation: str = block_sparse.NAME, **shape):
    """The same random weights in every call, in float32 on the CPU."""
    torch.manual_seed(0)
    config = AutoConfig.for_model(architecture, **(SHAPE | shape))
    model = AutoModelForCausalLM.from_config(config, attn_implementation="sdpa").eval()
    return block_sparse.set_implementation(model, implementation)


def denoiser(model, pattern: AttentionPattern, **sliding: int) -> Denoiser:
    """`sliding` are the types of layers with a window, beside those with full attention."""
    return Denoiser(model, pattern, MASK_ID, True, {"full_attention": None} | sliding)


def ragged(length: int) -> Batch:
    """Two rows of several documents each, whose ends differ and lie on no tile; the second ends in padding."""
    ends = torch.tensor([[length // 3 + 5, length // 2 + 11, length], [length // 5 + 2, length // 2 + 3, length - 9]])
    column = torch.arange(length).expand(2, -1)
    document = (column[:, None] >= ends[:, :, None]).sum(1)
    first = torch.cat([torch.zeros(2, 1, dtype=torch.long), ends], 1).gather(1, document)
    document[document == ends.shape[1]] = -1
    x0 = torch.randint(1, MASK_ID, (2, length), generator=torch.Generator().manual_seed(0))
    return Batch(x0, document >= 0, document, column - first)
