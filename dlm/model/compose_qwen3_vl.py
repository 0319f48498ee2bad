"""Gives a language model a vision tower of Qwen3-VL's class: images of any shape, with positions on three axes and
features in deeper layers.

`dlm.model.compose` makes a LLaVA, whose images have positions on one axis as text has. Only a model with several axes
can say what it costs to drop them (`dlm.model.one_axis`).
"""

from __future__ import annotations

import torch
from transformers import (
    AutoModelForImageTextToText,
    PaddleOCRVLProcessor,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    ProcessorMixin,
    Qwen2VLImageProcessorPil,
    Qwen3VLConfig,
)

from dlm.attention import block_sparse
from dlm.errors import one_line
from dlm.model.compose import init_positions, require_same_logits, require_tower, template_of
from dlm.model.parent import Parent, as_parent, load_parent
from dlm.model.vocabulary import add_rows

MERGED = 2  # patches of a side that become one token
BEGIN, IMAGE, END = "<|vision_start|>", "<|image_pad|>", "<|vision_end|>"
# What the config of a Qwen3 and the text config of a Qwen3-VL have in common.
TEXT = ("vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads")
TEXT += ("num_key_value_heads", "head_dim", "hidden_act", "max_position_embeddings", "rms_norm_eps", "attention_bias")
TEXT += ("tie_word_embeddings", "bos_token_id", "eos_token_id", "pad_token_id")


def compose_qwen3_vl(
    parent: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    size: dict[str, int],
    image_mean: float,
    image_std: float,
    seed: int = 0,
) -> tuple[PreTrainedModel, ProcessorMixin]:
    """A Qwen3-VL with the weights of a Qwen3 and a new tower, and its processor. `size` are sizes of the tower, as of
    `new_tower`: `patch_size` pixels of a side become one token. The tokenizer gets the tokens of images. Raises
    `ValueError` as `require_tower`, for an odd `patch_size`, and for another parent than a Qwen3 without windows."""
    require_tower(size, image_std)
    if size["patch_size"] % MERGED:
        raise ValueError(f"size.patch_size {size['patch_size']} must be even: 2 x 2 patches become one token")
    tokenizer.SPECIAL_TOKENS_ATTRIBUTES = [*tokenizer.SPECIAL_TOKENS_ATTRIBUTES, "image_token"]  # the processor asks
    tokenizer.add_special_tokens({"image_token": IMAGE, "extra_special_tokens": [BEGIN, END]}, False)  # keep the others
    model = filled(qwen3_vl_config(parent, tokenizer, size), parent, seed)
    require_same_logits(model, parent)
    num_rows = model.get_input_embeddings().weight.shape[0]
    if len(tokenizer) > num_rows:
        add_rows(model, num_rows, len(tokenizer) - 1)
    return model, processor_of(tokenizer, size, image_mean, image_std)


def qwen3_vl_config(parent: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, size: dict[str, int]) -> Qwen3VLConfig:
    """The config of the composed model. A third of the rotary frequencies is for each axis, in turn."""
    if parent.config.model_type != "qwen3":
        raise ValueError(f"{parent.config.model_type} cannot be composed as a Qwen3-VL: name a Qwen3")
    if (kinds := set(parent.config.layer_types)) != {"full_attention"}:
        raise ValueError(
            f"a Qwen3 with layers of {', '.join(sorted(kinds))} cannot be composed: a Qwen3-VL has no windows"
        )
    text = {name: getattr(parent.config, name) for name in TEXT}
    third, rest = divmod(text["head_dim"] // 2, 3)
    axes = {"mrope_section": [third + rest, third, third], "mrope_interleaved": True}
    tower = {
        "hidden_size": size["hidden_size"],
        "intermediate_size": 4 * size["hidden_size"],
        "depth": size["num_hidden_layers"],
        "num_heads": size["num_attention_heads"],
        "patch_size": size["patch_size"] // MERGED,
        "spatial_merge_size": MERGED,
        "temporal_patch_size": 1,
        "num_position_embeddings": (MERGED * size["image_size"] // size["patch_size"]) ** 2,
        "deepstack_visual_indexes": [size["num_hidden_layers"] // 2],
        "out_hidden_size": text["hidden_size"],
    }
    tokens = {"image_token_id": IMAGE, "vision_start_token_id": BEGIN, "vision_end_token_id": END}
    return Qwen3VLConfig(
        text_config=text | {"rope_parameters": parent.config.rope_parameters | axes},
        vision_config=tower,
        tie_word_embeddings=text["tie_word_embeddings"],
        **{name: tokenizer.convert_tokens_to_ids(token) for name, token in tokens.items()},
    )


def filled(config: Qwen3VLConfig, parent: PreTrainedModel, seed: int) -> PreTrainedModel:
    """The model of a config with the weights of a parent and a new tower. Raises `ValueError` if they do not fit."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(
                config, attn_implementation={"text_config": parent.config._attn_implementation}, dtype=parent.dtype
            )
        model.model.language_model.load_state_dict(parent.get_decoder().state_dict())
        model.lm_head.load_state_dict(parent.get_output_embeddings().state_dict())
    except RuntimeError as error:
        raise ValueError(f"{parent.config.model_type} cannot be composed as a Qwen3-VL: {one_line(error)}") from error
    init_positions(model.model.visual)
    model.tie_weights()
    model.generation_config = parent.generation_config  # whose EOS end a turn
    return model.eval()


def processor_of(
    tokenizer: PreTrainedTokenizerBase, size: dict[str, int], image_mean: float, image_std: float
) -> ProcessorMixin:
    """What makes patches of pictures. PaddleOCR-VL's gives the tensors that Qwen3-VL's gives of images, and reads no
    videos, for which that one needs torchvision."""
    pixels = size["image_size"] ** 2
    patches = Qwen2VLImageProcessorPil(
        patch_size=size["patch_size"] // MERGED,
        merge_size=MERGED,
        temporal_patch_size=1,
        size={"shortest_edge": pixels, "longest_edge": pixels},
        image_mean=[image_mean] * 3,
        image_std=[image_std] * 3,
    )
    return PaddleOCRVLProcessor(patches, tokenizer, chat_template=template_of(tokenizer, BEGIN + IMAGE + END))


def load_composed_qwen3_vl(
    path: str,
    size: dict[str, int],
    image_mean: float = 0.5,
    image_std: float = 0.5,
    seed: int = 0,
    attn_implementation: str = block_sparse.NAME,
    dtype: str = "float32",
    check: bool = True,
) -> Parent:
    """The Qwen3 of `path` with a new tower, as a parent (see `compose_qwen3_vl` and `load_parent`)."""
    text = load_parent(path, attn_implementation=attn_implementation, dtype=dtype, check=check)
    model, processor = compose_qwen3_vl(text.model, text.tokenizer, size, image_mean, image_std, seed)
    return as_parent(model, text.tokenizer, f"{path} with a new tower", None, check, processor)
