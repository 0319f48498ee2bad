"""`SDARForCausalLM`, which SGLang and LMDeploy serve: Qwen3's layers, blocks with clean context on a grid that begins
at position 0, no token shift. Neither engine reads block size or mask token from the config."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from dlm.attention.block import Block
from dlm.format.base import Converted
from dlm.format.engine import Engine
from dlm.format.hf import CLASS, CONFIG, MODULE, usage, write_code

CONFIGURATION, SGLANG = "configuration_sdar", "sglang.yaml"

SERVE = """\
The engines read neither the block size ({block_size}) nor the threshold from the folder: give both.

```
python -m sglang.launch_server --model-path {name} --trust-remote-code \\
    --dllm-algorithm LowConfidence --dllm-algorithm-config {name}/{sglang}
lmdeploy serve api_server {name} --backend pytorch --trust-remote-code --dllm-block-length {block_size} \\
    --dllm-unmasking-strategy {strategy}
```

They commit tokens behind a predicted EOS, which this project does not; nothing behind the first EOS is returned.

With transformers alone:

"""


class SDAR(Engine):
    """The parent's weights with an untied head; the same folder decodes with plain transformers."""

    architecture, model_type, families = "SDARForCausalLM", "sdar", ("qwen3",)
    reference, fixed_mask_id, qk_norm = Block, 151_669, True

    def config(self, made: Converted) -> dict[str, Any]:
        parent = made.model.config
        code = {"AutoConfig": f"{CONFIGURATION}.SDARConfig", "AutoModelForCausalLM": f"{MODULE}.{self.architecture}"}
        own = {name: value for name, value in made.settings.items() if name not in ("eos_token_id", "mask_token_id")}
        return own | {
            "auto_map": code,
            "head_dim": parent.head_dim,
            "attention_bias": False,
            "attention_dropout": 0.0,
            "sliding_window": None,
            "use_sliding_window": False,
            "max_window_layers": parent.num_hidden_layers,
            "rope_theta": parent.rope_parameters["rope_theta"],  # SGLang, and LMDeploy with transformers 4
            "rope_parameters": {"rope_type": "default", "rope_theta": parent.rope_parameters["rope_theta"]},
            "rope_scaling": None,
            "fuse_cross_entropy": False,  # read by the published modelling code in every forward
        }

    def required(self, config: dict[str, Any]) -> dict[str, Any]:
        exact = {"architectures": ["SDARForCausalLM"], "model_type": "sdar", "mask_token_id": 151_669}
        exact |= {"attention_bias": False, "tie_word_embeddings": False, "sliding_window": None, "rope_scaling": None}
        exact |= {"torch_dtype": self.dtype, "dtype": self.dtype, "use_sliding_window": False, "hidden_act": "silu"}
        present = ("head_dim", "rope_theta", "block_size", "pad_token_id", "eos_token_id", "bos_token_id")
        return exact | dict.fromkeys((*present, "fuse_cross_entropy"), ...)

    def write(self, made: Converted, folder: Path) -> None:
        super().write(made, folder)
        module = f"from .{CONFIGURATION} import"
        renamed = {"from .configuration_block_diffusion import": module, CONFIG: "SDARConfig", CLASS: self.architecture}
        write_code(folder, made.model, renamed)
        (folder / "configuration_block_diffusion.py").unlink()
        code = resources.files("dlm.exported").joinpath(f"{CONFIGURATION}.py").read_text(encoding="utf-8")
        (folder / f"{CONFIGURATION}.py").write_text(code, encoding="utf-8")
        threshold = made.settings["threshold"]
        settings = {"block_size": made.block_size, "threshold": 1.0 if threshold is None else threshold}
        (folder / SGLANG).write_text(yaml.safe_dump(settings))

    def usage(self, made: Converted, name: str) -> str:
        threshold, number = made.settings["threshold"], made.settings["tokens_per_step"]
        strategy = f"low_confidence_dynamic --dllm-confidence-threshold {threshold}"
        if number is not None:
            strategy = f"low_confidence_static --dllm-denoising-steps {made.block_size // number}"
        words = {"block_size": made.block_size, "name": name, "sglang": SGLANG, "strategy": strategy}
        return SERVE.format(**words) + usage(name, sees=False)

    def verify(self, folder: Path) -> None:
        super().verify(folder)
        settings = yaml.safe_load((folder / SGLANG).read_text())
        if settings["block_size"] != json.loads((folder / "config.json").read_text())["block_size"]:
            raise ValueError(f"{folder / SGLANG} has another block size than config.json")
