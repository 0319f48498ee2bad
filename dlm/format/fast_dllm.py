"""`Fast_dLLM_QwenForCausalLM`, the published code of Fast-dLLM v2: Qwen2's layers, blocks with clean context on a grid
that begins at position 0, token shift. Its code is not copied: the config names the repository that has it."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlm.attention.block import Block
from dlm.format.base import Converted
from dlm.format.engine import Engine

LARGEST_BLOCK = 32  # of the mask that the published denoising steps compute, whatever block size they are given

USAGE = """\
```python
from transformers import AutoModelForCausalLM, AutoTokenizer  # 4.53: the published code is older than transformers 5

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)  # code of {code}
inputs = tokenizer("…", return_tensors="pt")
out = model.generate(
    inputs.input_ids, tokenizer=tokenizer, max_new_tokens=128, block_size={block_size},
    small_block_size={small}, threshold={threshold}, mask_id={mask_id}, stop_token={stop},
)
```

Of every block, this code commits the first token alone, and finishes one small block after the other. It loses a
prompt of exactly {block_size} tokens: add one."""


class FastDLLM(Engine):
    """The parent's weights with an untied head. `code` is the repository whose code loads them."""

    architecture, model_type, families = "Fast_dLLM_QwenForCausalLM", "Fast_dLLM_Qwen", ("qwen2",)
    reference, fixed_mask_id, token_shift, qkv_bias = Block, 151_665, True, True

    def __init__(self, dtype: str = "bfloat16", code: str = "Efficient-Large-Model/Fast_dLLM_v2_7B"):
        super().__init__(dtype)
        self.code = code

    def refusals(self, made: Converted) -> Iterator[str]:
        yield from super().refusals(made)
        if LARGEST_BLOCK % made.block_size:
            yield (
                f"block_size {made.block_size} does not divide {LARGEST_BLOCK}, the blocks of the mask that the "
                "published code computes in every denoising step: train with a divisor, or use format=hf"
            )
        if made.settings["threshold"] is None and made.settings["tokens_per_step"] != 1:
            yield (
                f"decoding.tokens_per_step {made.settings['tokens_per_step']} is not to be had in the published code: "
                "give decoding=threshold, or threshold=1"
            )

    def config(self, made: Converted) -> dict[str, Any]:
        parent = made.model.config
        classes = {"AutoConfig": "configuration.Fast_dLLM_QwenConfig", "AutoModel": "modeling.Fast_dLLM_QwenModel"}
        classes |= {"AutoModelForCausalLM": f"modeling.{self.architecture}"}
        return {
            "auto_map": {name: f"{self.code}--{place}" for name, place in classes.items()},
            "bd_size": made.block_size,
            "attention_dropout": 0.0,
            "layer_types": ["full_attention"] * parent.num_hidden_layers,
            "max_window_layers": parent.num_hidden_layers,
            "sliding_window": None,
            "use_sliding_window": False,
            "rope_theta": parent.rope_parameters["rope_theta"],
            "rope_scaling": None,
        }

    def required(self, config: dict[str, Any]) -> dict[str, Any]:
        exact = {"architectures": ["Fast_dLLM_QwenForCausalLM"], "model_type": "Fast_dLLM_Qwen"}
        exact |= {"mask_token_id": 151_665, "tie_word_embeddings": False, "sliding_window": None, "rope_scaling": None}
        exact |= {"bd_size": config.get("block_size"), "torch_dtype": self.dtype, "dtype": self.dtype}
        exact |= {"layer_types": ["full_attention"] * config.get("num_hidden_layers", 0)}
        return exact | dict.fromkeys(("rope_theta", "pad_token_id", "eos_token_id", "attention_dropout"), ...)

    def usage(self, made: Converted, name: str) -> str:
        eos = made.settings["eos_token_id"]
        threshold = made.settings["threshold"]
        return USAGE.format(
            name=name,
            code=self.code,
            block_size=made.block_size,
            small=min(8, made.block_size),
            threshold=1.0 if threshold is None else threshold,
            mask_id=made.mask_id,
            stop=eos if isinstance(eos, int) else eos[0],
        )
