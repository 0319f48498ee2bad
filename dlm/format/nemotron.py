"""`NemotronLabsDiffusionModel` of NVIDIA's published code and of vLLM: Llama's layers under other names, a token-causal
context, blocks that begin where the prompt ends, no token shift."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from dlm.attention.block_token_causal import BlockTokenCausal
from dlm.format.base import Converted
from dlm.format.engine import Engine

CODE = {
    "AutoConfig": "configuration_nemotron_labs_diffusion.NemotronLabsDiffusionConfig",
    "AutoModel": "modeling_nemotron_labs_diffusion.NemotronLabsDiffusionModel",
}

USAGE = """\
```
vllm serve {name} --trust-remote-code --diffusion-config '{{"canvas_length": {block_size}}}'
```

```python
from transformers import AutoModel, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}")
model = AutoModel.from_pretrained("{name}", trust_remote_code=True)  # code of {code}
inputs = tokenizer("…", return_tensors="pt")
tokens, nfe = model.generate(
    inputs.input_ids, max_new_tokens={new}, block_length={block_size}, threshold={threshold}, eos_token_id={eos}
)
```

Blocks begin where the prompt ends, and not at multiples of {block_size}: the context is token-causal, so that the
model does not see where blocks begin. vLLM hides a whole block, as this project does; NVIDIA's `generate` takes the
first token of every block from the AR model. SGLang's branch for this architecture hides tokens by id 100, and this
model has {mask_id}: do not use it."""


class Nemotron(Engine):
    """The parent's weights, renamed, with an untied head. `code` is the repository whose code loads them in
    transformers."""

    architecture, model_type = "NemotronLabsDiffusionModel", "nemotron_labs_diffusion"
    families, reference = ("llama", "mistral"), BlockTokenCausal
    prefix, head, anchor = "encoder.", "diffusion_head.weight", None

    def __init__(self, dtype: str = "bfloat16", code: str = "nvidia/Nemotron-Labs-Diffusion-8B"):
        super().__init__(dtype)
        self.code = code

    def refusals(self, made: Converted) -> Iterator[str]:
        yield from super().refusals(made)
        if not made.trains_ar:
            yield (
                "its clean stream was not trained as an AR model, which gives the first token of every block in "
                "NVIDIA's code: train with auxiliary=ar, or use format=hf"
            )

    def config(self, made: Converted) -> dict[str, Any]:
        parent = made.model.config
        rope = {"rope_type": "default", "rope_theta": parent.rope_parameters["rope_theta"]}
        # Without these two, NVIDIA's code fails; with them, queries are scaled by 1.
        rope |= {"llama_4_scaling_beta": 0.0, "original_max_position_embeddings": parent.max_position_embeddings}
        return {
            "auto_map": {name: f"{self.code}--{place}" for name, place in CODE.items()},
            "head_dim": getattr(parent, "head_dim", None) or parent.hidden_size // parent.num_attention_heads,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "mlp_bias": False,
            "sliding_window": None,
            "rope_parameters": rope,
            "dlm_paradigm": "bidirectional",  # of a block; the code itself makes the context causal
        }

    def required(self, config: dict[str, Any]) -> dict[str, Any]:
        exact = {"architectures": ["NemotronLabsDiffusionModel"], "model_type": "nemotron_labs_diffusion"}
        exact |= {"tie_word_embeddings": False, "attention_bias": False, "mlp_bias": False, "sliding_window": None}
        exact |= {"torch_dtype": self.dtype, "dtype": self.dtype, "dlm_paradigm": "bidirectional"}
        return exact | dict.fromkeys(
            ("head_dim", "rope_parameters", "mask_token_id", "block_size", "eos_token_id"), ...
        )

    def generation(self, made: Converted) -> dict[str, Any]:
        """What vLLM reads: the commit rule, at temperature 0."""
        threshold, number = made.settings["threshold"], made.settings["tokens_per_step"]
        rule = {"diffusion_temperature": 0.0, "max_denoising_steps": made.block_size}
        if number is not None:
            steps = -(-made.block_size // number)
            return rule | {"diffusion_selection_policy": "low_confidence", "max_denoising_steps": steps}
        if not 0 < threshold < 1:  # of vLLM's thresholds
            steps = 1 if threshold <= 0 else made.block_size
            return rule | {"diffusion_selection_policy": "low_confidence", "max_denoising_steps": steps}
        return rule | {
            "diffusion_selection_policy": "confidence_threshold",
            "diffusion_confidence_threshold": threshold,
        }

    def usage(self, made: Converted, name: str) -> str:
        eos = made.settings["eos_token_id"]
        return USAGE.format(
            name=name,
            code=self.code,
            block_size=made.block_size,
            new=-(-128 // made.block_size) * made.block_size,
            threshold=made.settings["threshold"],
            eos=eos if isinstance(eos, int) else eos[0],
            mask_id=made.mask_id,
        )
