"""A Hugging Face folder that decodes by itself, with plain transformers.

The weights are copied unchanged. `dlm/exported/modeling_block_diffusion.py`, with the parent's classes filled in, goes
beside them, so that `AutoModelForCausalLM.from_pretrained(FOLDER, trust_remote_code=True).generate(...)` gives the same
tokens in the same number of forwards as `dlm.decoding`.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from importlib import resources
from pathlib import Path
from typing import Any

from transformers import PreTrainedModel

from dlm.attention.base import AttentionPattern
from dlm.config.exported import MODEL_TYPE
from dlm.format.base import Converted, Format
from dlm.format.masks import exported_mask, first_difference
from dlm.model.positions import num_positions
from dlm.model.vision import auto_class, reads_images

MODULE, GENERATION = "modeling_block_diffusion", "generation_config.json"
CODE = (MODULE, "generation_block_diffusion", "pictures_block_diffusion", "configuration_block_diffusion")
CLASS, CONFIG = "BlockDiffusionForCausalLM", "BlockDiffusionConfig"
TEMPLATE = "Qwen3ForCausalLM", "Qwen3Config"  # placeholders of the parent's classes in the code
NO_LIMIT = 32_768  # tokens of a row, if the model sets no limit

USAGE = """\
```python
{example}
print({decoder}.decode(out.sequences[0, inputs.input_ids.shape[1] :], skip_special_tokens=True), out.nfe)
```

`generate` also takes `threshold` (commit every token more probable than this), `tokens_per_step` (or a fixed number),
`temperature`, `top_p`, `top_k`, `do_sample`, `num_return_sequences`, `generator`, `eos_token_id`, `pad_token_id`,
`stop_strings` with `tokenizer`, `attention_mask`, `max_length`, a `streamer`, which gets every finished block, and a
`generation_config` that holds any of these, so that `pipeline("{task}", "{name}", trust_remote_code=True)`
works. What it does not have (beams, penalties) it refuses by name. Without `trust_remote_code` nothing loads: the
parent's class would decode autoregressively, which is not this model."""

TEXT_EXAMPLE = """\
from transformers import AutoModelForCausalLM, AutoTokenizer

tokenizer = AutoTokenizer.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForCausalLM.from_pretrained("{name}", trust_remote_code=True)
inputs = tokenizer("…", return_tensors="pt")
out = model.generate(inputs.input_ids, max_new_tokens=128, return_dict_in_generate=True)"""

PICTURE_EXAMPLE = """\
from transformers import AutoModelForImageTextToText, AutoProcessor

processor = AutoProcessor.from_pretrained("{name}", trust_remote_code=True)
model = AutoModelForImageTextToText.from_pretrained("{name}", trust_remote_code=True)
content = [{{"type": "image", "path": "picture.png"}}, {{"type": "text", "text": "…"}}]
inputs = processor.apply_chat_template(
    [{{"role": "user", "content": content}}],
    add_generation_prompt=True, tokenize=True, return_dict=True, return_tensors="pt",
)
out = model.generate(**inputs, max_new_tokens=128, return_dict_in_generate=True)"""


class HF(Format):
    """The layout of the parent, with code of its own."""

    def refusals(self, made: Converted) -> Iterator[str]:
        if refusal := mask_refusal(made.pattern, num_positions(made.model.config) or NO_LIMIT):
            yield refusal

    def write(self, made: Converted, folder: Path) -> None:
        shutil.copytree(made.weights, folder, copy_function=shutil.copyfile)
        write_code(folder, made.model)
        loader = auto_class(made.model.config).__name__
        auto_map = {"AutoConfig": f"{MODULE}.{CONFIG}", loader: f"{MODULE}.{CLASS}"}
        model_type = MODEL_TYPE + made.model.config.model_type
        code = {"model_type": model_type, "architectures": [CLASS], "auto_map": auto_map, "use_cache": True}
        write_configs(folder, made.settings | code, made.settings["eos_token_id"])

    def verify(self, folder: Path) -> None:
        """Raises `ValueError` if the code of the folder is incomplete."""
        if missing := [name for name in CODE if not (folder / f"{name}.py").is_file()]:
            raise ValueError(f"{folder} lacks {', '.join(missing)}: install dlm again")

    def usage(self, made: Converted, name: str) -> str:
        return usage(name, reads_images(made.model.config))


def usage(name: str, sees: bool) -> str:
    """How plain transformers loads a folder of this name, with an example that asks about a picture if it `sees`."""
    example, decoder, task = (
        (PICTURE_EXAMPLE, "processor", "image-text-to-text") if sees else (TEXT_EXAMPLE, "tokenizer", "text-generation")
    )
    return USAGE.format(example=example.format(name=name), decoder=decoder, task=task, name=name)


def mask_refusal(pattern: AttentionPattern, length: int) -> str | None:
    """Why the exported code cannot decode under a pattern in rows of `length` tokens, if its mask is another."""
    if (pair := first_difference(pattern, exported_mask(pattern), length)) is None:
        return None
    return (
        f"attention={type(pattern).__module__.rpartition('.')[2]} cannot be exported: dlm/exported/{MODULE}.py does "
        f"not know its mask, which is another where position {pair[0]} sees position {pair[1]}, or does not"
    )


def write_code(folder: Path, parent: PreTrainedModel, replaced: dict[str, str] | None = None) -> None:
    """Write the modelling code with the parent's classes filled in, and further words `replaced`."""
    classes = list(zip(TEMPLATE, (type(parent).__name__, type(parent.config).__name__), strict=True))
    for name in CODE:
        text = resources.files("dlm.exported").joinpath(f"{name}.py").read_text(encoding="utf-8")
        for placeholder, word in (*classes, *(replaced or {}).items()):
            text = text.replace(placeholder, word)
        (folder / f"{name}.py").write_text(text, encoding="utf-8")


def write_configs(folder: Path, values: dict[str, Any], eos: int | list[int], **generation: Any) -> None:
    """Add values to config.json and write the decoding defaults to generation_config.json, which keeps only the special
    tokens of the parent's. The `model_type` among the values is unknown to transformers, so that nothing loads the
    folder as a model of the parent's class, which would decode autoregressively."""
    config, defaults = folder / "config.json", folder / GENERATION
    parent_config = json.loads(config.read_text(encoding="utf-8"))
    special = json.loads(defaults.read_text(encoding="utf-8")) if defaults.exists() else {}
    special = {name: value for name, value in special.items() if name in ("bos_token_id", "pad_token_id")}
    special |= {"eos_token_id": eos, "do_sample": False} | generation
    for path, content in ((config, parent_config | values), (defaults, special)):
        path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
