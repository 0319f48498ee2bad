"""What the layouts for inference engines share: they name their tensors and config keys, and an engine that finds
others loads nothing, or something else.

The head is always written untied, whatever the parent has, since the loaders treat tied heads differently (SGLang
0.5.23 fails on them), and the mask token's row of it becomes the mean of the others. Its logit is then the mean logit,
which is never the highest, and has at most 1/V of the probability: engines do not exclude the mask token.
"""

from __future__ import annotations

import json
import shutil
from abc import abstractmethod
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import save_torch_state_dict
from safetensors import safe_open
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig

from dlm.attention.base import AttentionPattern, BlockAnchor
from dlm.format.base import Converted, Format
from dlm.format.hf import NO_LIMIT, write_configs
from dlm.format.masks import first_difference
from dlm.model.positions import num_positions
from dlm.model.vision import reads_images

Shapes = dict[str, tuple[int, ...]]
DTYPES = {name: getattr(torch, name) for name in ("bfloat16", "float16", "float32")}
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"  # their names in the parent
MAX_SHARD = "5GB"
SIZES = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
COPIED = (*SIZES, "vocab_size", "hidden_act", "rms_norm_eps", "max_position_embeddings", "initializer_range")


class Engine(Format):
    """A layout for engines that know neither this project nor its settings. `families` are the types of the parents
    whose layers it has; `reference` is the attention pattern whose decoding the engines compute."""

    architecture: str
    model_type: str
    families: tuple[str, ...]
    reference: type[AttentionPattern]
    fixed_mask_id: int | None = None  # an id that the engines do not read from the config
    token_shift: bool = False
    anchor: BlockAnchor | None = BlockAnchor.ABSOLUTE  # where their blocks begin; None: either is taken
    prefix, head = "model.", HEAD  # how the names of the tensors begin, and the name of the head
    qkv_bias = qk_norm = False

    def __init__(self, dtype: str = "bfloat16"):
        if dtype not in DTYPES:
            raise ValueError(f"format.dtype {dtype!r} is unknown: choose one of {', '.join(DTYPES)}")
        self.dtype = dtype

    def refusals(self, made: Converted) -> Iterator[str]:
        family, use = made.model.config.model_type, "or use format=hf"
        if reads_images(made.model.config):
            yield f"it reads images, and {self.architecture} is a model of text: use format=hf"
            return
        if family not in self.families:
            yield (
                f"its parent is a {family}, and {self.architecture} has the layers of {' and '.join(self.families)}: "
                f"choose a parent of that type, {use}"
            )
            return  # what follows reads the config of that type
        yield from layer_refusals(made.model.config)
        if made.settings["token_shift"] != self.token_shift:
            row = "i-1" if self.token_shift else "i"
            yield (
                f"token_shift={str(not self.token_shift).lower()}, and its engines take position {row} as the score "
                f"of token i: train with token_shift={str(self.token_shift).lower()}, {use}"
            )
        yield from self.mask_refusals(made, use)
        if self.fixed_mask_id not in (None, made.mask_id):
            yield (
                f"its mask token has id {made.mask_id}, and the engines hide tokens by id {self.fixed_mask_id}: use a "
                f"parent whose tokenizer has its first free id there, {use}"
            )

        number = made.settings["tokens_per_step"]
        if number is not None and made.block_size % number:
            yield (
                f"decoding.tokens_per_step {number} does not divide the block size {made.block_size}, and the engines "
                "are given a number of steps: choose a divisor, or decoding=threshold"
            )

    def mask_refusals(self, made: Converted, use: str) -> Iterator[str]:
        """Why the mask that the engines compute is not that of the training."""
        train = f"train with attention={module_of(self.reference)}, {use}"
        if self.anchor not in (None, made.pattern.block_anchor):
            yield (
                f"attention.block_anchor={made.pattern.block_anchor.value}, and its engines begin the grid of blocks "
                f"with the text: train with attention.block_anchor={self.anchor.value}, {use}"
            )
        if not (made.pattern.clean_stream and made.pattern.noisy_stream):
            yield f"it was trained on noisy context, and its engines show it clean blocks: {train}"
            return
        expected = self.reference(made.block_size).visible
        if pair := first_difference(made.pattern, expected, num_positions(made.model.config) or NO_LIMIT):
            yield (
                f"attention={module_of(type(made.pattern))}, and its engines compute another mask, where position "
                f"{pair[0]} sees position {pair[1]}, or does not: {train}"
            )

    @abstractmethod
    def config(self, made: Converted) -> dict[str, Any]:
        """The keys of config.json that are this layout's own."""

    @abstractmethod
    def required(self, config: dict[str, Any]) -> dict[str, Any]:
        """What the engines' code needs config.json to hold, beside the keys of `COPIED`."""

    def layout(self, config: dict[str, Any]) -> Shapes:
        """The tensors that the engines' code loads under a config.json."""
        width, heads = config["hidden_size"], config["num_attention_heads"]
        inner, size = config["intermediate_size"], config.get("head_dim") or width // heads
        queries, keys = heads * size, config["num_key_value_heads"] * size
        linear = {"q_proj": (queries, width), "k_proj": (keys, width), "v_proj": (keys, width)}
        one: Shapes = {f"self_attn.{name}.weight": shape for name, shape in linear.items()}
        one |= {"self_attn.o_proj.weight": (width, queries), "mlp.down_proj.weight": (width, inner)}
        one |= {f"mlp.{name}.weight": (inner, width) for name in ("gate_proj", "up_proj")}
        one |= {f"{name}.weight": (width,) for name in ("input_layernorm", "post_attention_layernorm")}
        if self.qkv_bias:
            one |= {f"self_attn.{name}.bias": shape[:1] for name, shape in linear.items()}
        if self.qk_norm:
            one |= {f"self_attn.{name}.weight": (size,) for name in ("q_norm", "k_norm")}
        layers = range(config["num_hidden_layers"])
        ends = {"embed_tokens.weight": (config["vocab_size"], width), "norm.weight": (width,)}
        ends |= {f"layers.{n}.{name}": shape for n in layers for name, shape in one.items()}
        return {self.prefix + name: shape for name, shape in ends.items()} | {self.head: (config["vocab_size"], width)}

    def write(self, made: Converted, folder: Path) -> None:
        shutil.copytree(made.weights, folder, ignore=shutil.ignore_patterns("*.safetensors*"))
        save_torch_state_dict(self.tensors(made), folder, max_shard_size=MAX_SHARD)
        eos = made.settings["eos_token_id"]
        parent = made.model.config.to_dict()
        values = {name: parent[name] for name in COPIED} | {
            "architectures": [self.architecture],
            "model_type": self.model_type,
            "eos_token_id": eos if isinstance(eos, int) else eos[0],
            "bos_token_id": parent.get("bos_token_id"),
            "pad_token_id": parent.get("pad_token_id"),
            "mask_token_id": made.mask_id,
            "block_size": made.block_size,
            "tie_word_embeddings": False,
            "dtype": self.dtype,
            "torch_dtype": self.dtype,
            "use_cache": True,
        }
        (folder / "config.json").write_text("{}")
        write_configs(folder, values | self.config(made), eos, **self.generation(made))

    def generation(self, made: Converted) -> dict[str, Any]:
        """What the engines read from generation_config.json."""
        return {}

    def tensors(self, made: Converted) -> dict[str, Tensor]:
        """The weights under the names of this layout, the head untied."""
        parent: dict[str, Tensor] = {}
        for file in sorted(made.weights.glob("*.safetensors")):
            parent |= load_file(file)
        head = parent.pop(HEAD, parent[EMBEDDING]).clone()
        others = torch.arange(len(head)) != made.mask_id
        head[made.mask_id] = head[others].mean(0, dtype=torch.float32).to(head.dtype)
        named = {self.prefix + name.removeprefix("model."): tensor for name, tensor in parent.items()}
        return {name: t.to(DTYPES[self.dtype]).contiguous() for name, t in (named | {self.head: head}).items()}

    def verify(self, folder: Path) -> None:
        """Raises `ValueError` for the first thing that the engines' loading code would trip over or misread."""
        if problem := next(self.problems(folder), None):
            raise ValueError(f"{folder} is not what the engines load for format={self.name}: {problem}")

    def problems(self, folder: Path) -> Iterator[str]:
        """What is wrong with a folder; the first is a reason, the others may follow from it."""
        config = json.loads((folder / "config.json").read_text(encoding="utf-8"))
        yield from config_problems(config, self.required(config))
        yield from tensor_problems(folder, self.layout(config), config["torch_dtype"])
        mask_id = AutoTokenizer.from_pretrained(folder, config=PreTrainedConfig()).mask_token_id
        if mask_id != config["mask_token_id"]:
            yield f"the tokenizer's mask token has id {mask_id}, and config.json says {config['mask_token_id']}"


def module_of(kind: type) -> str:
    """The option that builds a class."""
    return kind.__module__.rpartition(".")[2]


def layer_refusals(config: PreTrainedConfig) -> Iterator[str]:
    """What the layers of a parent have that the engines' layers of its family do not."""
    rope = (config.rope_parameters or {}).get("rope_type", "default")
    if rope != "default":
        yield f"its positions are of type {rope!r}, which no engine was checked with: use format=hf"
    if getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True):
        yield f"it has a sliding window of {config.sliding_window} tokens, which the engines do not: use format=hf"
    if config.hidden_act != "silu":
        yield f"its activation is {config.hidden_act!r}, and the engines compute silu: use format=hf"
    for name in ("attention_bias", "mlp_bias"):
        if getattr(config, name, False):
            yield f"it has {name}, and the engines load no such tensors: use format=hf"


def config_problems(config: dict[str, Any], required: dict[str, Any]) -> Iterator[str]:
    """What a config.json lacks, or has other than required (`...`: any value)."""
    for name in (*COPIED, *required):
        if name not in config:
            yield f"config.json lacks {name}"
    for name, value in required.items():
        if value is not ... and config.get(name) != value:
            yield f"{name} in config.json is {config.get(name)!r}, and must be {value!r}"


def tensor_problems(folder: Path, layout: Shapes, dtype: str) -> Iterator[str]:
    """Tensors of a folder that are missing, superfluous, or of another shape or `dtype` than an engine expects."""
    found: Shapes = {}
    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, "pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 (no dict)
                part = tensors.get_slice(name)
                found[name] = tuple(part.get_shape())
                kind = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}.get(part.get_dtype())
                if kind != dtype:
                    yield f"{name} is stored as {part.get_dtype()}, and config.json says {dtype}"
    for name in layout.keys() | found.keys():
        if found.get(name) != layout.get(name):
            yield f"tensor {name} has shape {found.get(name)}, and the engines expect {layout.get(name)}"
