"""Gives a language model a vision tower: a checkpoint of transformers' LLaVA class around a parent, with its processor.

The parent's weights are taken as they are, so the composed model says of a text what the parent says, to the bit. The
connector between tower and parent is new, and so may be the tower: these are trained next.
"""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass

import torch
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    MODEL_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageTextToText,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
    SiglipImageProcessorPil,
    SiglipVisionConfig,
)
from transformers.image_processing_utils import BaseImageProcessor

from dlm.attention import block_sparse
from dlm.errors import one_line
from dlm.model.parent import Parent, as_parent, load_parent, resolve
from dlm.model.vocabulary import add_rows

IMAGE_TOKEN = "<image>"
# What is said as it stands, for a parent without a template.
PLAIN = (
    "{%- for message in messages -%}{{ message.content }}"
    "{%- if message.role == 'assistant' -%}{{ eos_token }}{%- endif -%}{%- endfor -%}"
)
PROBE = 64  # tokens of a text for which both models must give the same logits
# What a head does beside its matrix, by the setting that says so.
BESIDE = {"logits_scaling": "scales", "logit_scale": "scales", "final_logit_softcapping": "soft-caps"}


def flatten(place: str) -> str:
    """A template's beginning that turns the parts of a message into text, for one that knows no images: `place` stands
    for an image."""
    return (
        "{%- set flat = namespace(messages=[]) -%}{%- for message in messages -%}{%- set said = namespace(text='') -%}"
        "{%- if message.content is string -%}{%- set said.text = message.content -%}{%- else -%}"
        "{%- for part in message.content -%}"
        "{%- set said.text = said.text + ('" + place + "' if part.type == 'image' else part.text) -%}"
        "{%- endfor -%}{%- endif -%}"
        "{%- set flat.messages = flat.messages + [dict(message, content=said.text)] -%}{%- endfor -%}"
        "{%- set messages = flat.messages -%}"
    )


def template_of(tokenizer: PreTrainedTokenizerBase, place: str) -> str:
    """The chat template of a composed model: its tokenizer's, to which `place` stands for an image."""
    return flatten(place) + (tokenizer.get_chat_template() if tokenizer.chat_template else PLAIN)


@dataclass(frozen=True)
class Tower:
    """A vision tower, and what makes pixels of pictures for it."""

    model: PreTrainedModel
    processor: BaseImageProcessor

    @property
    def config(self) -> PreTrainedConfig:
        return self.model.config

    @property
    def num_patches(self) -> int:
        return (self.config.image_size // self.config.patch_size) ** 2

    @torch.no_grad()
    def num_others(self) -> int:
        """The rows of its output beside one for each patch: 1 for a class token. Raises `ValueError` for others."""
        side = self.config.image_size
        states = self.model(pixel_values=torch.zeros(1, 3, side, side, dtype=self.model.dtype)).last_hidden_state
        others = states.shape[1] - self.num_patches
        if others not in (0, 1):
            raise ValueError(
                f"tower {self.config.model_type} gives {states.shape[1]} rows for {self.num_patches} patches, and the "
                "LLaVA class knows one of a class token at most: name a SigLIP or a CLIP"
            )
        return others


def new_tower(size: Mapping[str, int], mean: float, std: float, seed: int) -> Tower:
    """A random SigLIP. `size` are sizes of its config; `mean` and `std`, in [0, 1], normalise the channels of its
    pixels. Raises `ValueError` as `require_tower`."""
    side = size["image_size"]
    require_tower(size, std)
    config = SiglipVisionConfig(**size, intermediate_size=4 * size["hidden_size"], vision_use_head=False)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = AutoModel.from_config(config)
    init_positions(model)
    scale = {"image_mean": [mean] * 3, "image_std": [std] * 3}
    return Tower(model.eval(), SiglipImageProcessorPil(size={"height": side, "width": side}, **scale))


def require_tower(size: Mapping[str, int], std: float) -> None:
    """Raises `ValueError` for sizes of a new tower that do not go together, and for a scale that divides by nothing."""
    if small := [f"size.{name} {value}" for name, value in size.items() if value < 1]:
        raise ValueError(f"{small[0]} must be at least 1")
    if std <= 0:
        raise ValueError(f"image_std {std} must be above 0: pixels are divided by it")
    side, heads = size["image_size"], size["num_attention_heads"]
    if side % size["patch_size"]:
        raise ValueError(f"size.image_size {side} must be a multiple of size.patch_size {size['patch_size']}")
    if size["hidden_size"] % (4 * heads):
        raise ValueError(
            f"size.hidden_size {size['hidden_size']} must be a multiple of 4 x size.num_attention_heads, {4 * heads}"
        )


@torch.no_grad()
def init_positions(tower: PreTrainedModel) -> None:
    """Positions of a new tower as sines and cosines of row and column, of the size of its patches. Those of its class
    begin at a tenth of that, and a small model then learns late where something is."""
    names = (name for name, _ in tower.named_parameters() if "position_embedding" in name or "pos_embed" in name)
    table = tower.get_parameter(next(names))
    side, quarter = round(table.shape[0] ** 0.5), table.shape[1] // 4
    angle = torch.arange(side)[:, None] * 100 ** (-torch.arange(quarter) / quarter)
    wave = torch.cat([angle.sin(), angle.cos()], 1)
    table.copy_(1.5 * torch.cat([wave.repeat_interleave(side, 0), wave.repeat(side, 1)], 1))


def pretrained_tower(path: str) -> Tower:
    """The vision tower of a checkpoint, a hub id or a folder: of a vision model alone, beside its text model, or in a
    vision-language model. Raises `ValueError` if there is none."""
    try:
        config = AutoConfig.from_pretrained(path)
        if type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING:
            model = AutoModelForImageTextToText.from_pretrained(path).base_model.vision_tower
        else:
            config = getattr(config, "vision_config", config)
            model = MODEL_MAPPING[type(config)].from_pretrained(path, config=config)
        processor = AutoImageProcessor.from_pretrained(path)
    except Exception as error:  # transformers raises many types
        raise ValueError(
            f"tower {path!r} could not be loaded as a vision model: {one_line(error)}. tower=siglip is a new one; "
            "else name the folder or hub id of a SigLIP or CLIP"
        ) from error
    return Tower(model.eval(), processor)


def compose(
    parent: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tower: Tower, seed: int = 0
) -> tuple[LlavaForConditionalGeneration, LlavaProcessor]:
    """The composed model and its processor. `seed` is that of the connector. The tokenizer gets `<image>`, if it has no
    such token. Raises `ValueError` for a parent whose logits the class does not give."""
    text, vision = deepcopy(parent.config), tower.config
    text._name_or_path = ""  # of a folder on this machine
    if hasattr(text, "vision_config"):
        raise ValueError(f"{text.model_type} has a vision tower: name a parent that reads text only")
    if IMAGE_TOKEN not in tokenizer.get_vocab():
        tokenizer.add_special_tokens({"extra_special_tokens": [IMAGE_TOKEN]}, replace_extra_special_tokens=False)
    others = tower.num_others()
    strategy = "default" if others else "full"  # without the class token, or all
    config = LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=tokenizer.convert_tokens_to_ids(IMAGE_TOKEN),
        vision_feature_select_strategy=strategy,
        vision_feature_layer=-1,
        image_seq_length=tower.num_patches,
        tie_word_embeddings=text.tie_word_embeddings,
    )
    model = filled(config, parent, tower, seed)
    require_same_logits(model, parent)
    num_rows = model.get_input_embeddings().weight.shape[0]
    if config.image_token_id >= num_rows:
        add_rows(model, num_rows, config.image_token_id)
    processor = LlavaProcessor(
        tower.processor,
        tokenizer,
        patch_size=vision.patch_size,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=others,
        chat_template=template_of(tokenizer, IMAGE_TOKEN),
    )
    return model, processor


def filled(config: LlavaConfig, parent: PreTrainedModel, tower: Tower, seed: int) -> LlavaForConditionalGeneration:
    """The model of a config with the weights of parent and tower. Raises `ValueError` if they do not fit."""
    attention = {"text_config": parent.config._attn_implementation}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = AutoModelForImageTextToText.from_config(config, attn_implementation=attention, dtype=parent.dtype)
        model.model.language_model.load_state_dict(parent.get_decoder().state_dict())
        model.lm_head.load_state_dict(parent.get_output_embeddings().state_dict())
    except (RuntimeError, AttributeError) as error:
        raise ValueError(f"{config.text_config.model_type} cannot be composed: {one_line(error)}") from error
    model.model.vision_tower.load_state_dict(tower.model.state_dict())
    model.tie_weights()
    model.generation_config = parent.generation_config  # whose EOS end a turn
    return model.eval()


@torch.no_grad()
def require_same_logits(model: PreTrainedModel, parent: PreTrainedModel) -> None:
    """Raises `ValueError` unless both give equal logits for a text."""
    text = parent.config.get_text_config()
    ids = torch.randint(text.vocab_size, (1, PROBE), generator=torch.Generator().manual_seed(0)).to(parent.device)
    if torch.equal(model(input_ids=ids).logits, parent.eval()(input_ids=ids).logits):
        return
    reasons = [f"{what} them ({key}={value})" for key, what in BESIDE.items() if (value := getattr(text, key, None))]
    why = f", as its head {' and '.join(reasons)}" if reasons else ""
    raise ValueError(f"{text.model_type} cannot be composed: {type(model).__name__} does not give its logits{why}")


def load_composed(
    path: str,
    tower: str,
    seed: int = 0,
    attn_implementation: str = block_sparse.NAME,
    dtype: str = "float32",
    check: bool = True,
) -> Parent:
    """The language model of `path` with the vision tower of another checkpoint and a new connector, as a parent (see
    `load_parent`, whose arguments these are)."""
    text = load_parent(path, attn_implementation=attn_implementation, dtype=dtype, check=check)
    model, processor = compose(text.model, text.tokenizer, pretrained_tower(resolve(tower)), seed)
    return as_parent(model, text.tokenizer, f"{path} with the tower of {tower}", None, check, processor)
