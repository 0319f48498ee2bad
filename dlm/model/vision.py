"""Which checkpoints read images, and what they come with to make tensors of them."""

from __future__ import annotations

import sys
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from transformers import (
    MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoProcessor,
    PreTrainedConfig,
    PreTrainedTokenizerBase,
    ProcessorMixin,
)

from dlm.errors import one_line

SIDE = 64  # pixels of a made-up image


def auto_class(config: PreTrainedConfig) -> type:
    """The class of transformers that loads a checkpoint with this config: with its vision tower, if it has one."""
    return AutoModelForImageTextToText if reads_images(config) else AutoModelForCausalLM


def reads_images(config: PreTrainedConfig) -> bool:
    """Whether models with this config have a vision tower."""
    return "vision_config" in config.sub_configs and type(config) in MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING


def require_sight(config: PreTrainedConfig) -> None:
    """Raises `ValueError` for a model that reads text only, which was given images."""
    if not reads_images(config):
        raise ValueError(f"{config.model_type} reads no images: name a vision-language model, or leave the images out")


def load_config(folder: str, options: dict[str, Any]) -> PreTrainedConfig:
    """The config of a checkpoint."""
    return AutoConfig.from_pretrained(folder, **options)


def load_processor(folder: str, tokenizer: PreTrainedTokenizerBase, options: dict[str, Any]) -> ProcessorMixin | None:
    """The processor of a vision-language checkpoint, with this tokenizer. None, with a note on stderr, if it cannot be
    loaded: the model then reads text only."""
    try:
        processor = AutoProcessor.from_pretrained(folder, **options)
    except Exception as error:  # transformers raises many types
        hint = " (pip install torchvision)" if "torchvision" in str(error).lower() else ""
        print(
            f"{folder!r} reads text only, since its processor could not be loaded{hint}: {one_line(error)}",
            file=sys.stderr,
        )
        return None
    processor.tokenizer = tokenizer
    return processor


def example_document(processor: ProcessorMixin) -> dict[str, Tensor]:
    """The arguments of a model's forward for a made-up image and a word, as its processor makes them."""
    noise = torch.rand(SIDE, SIDE, 3, generator=torch.Generator().manual_seed(0))
    image = Image.fromarray((noise * 255).byte().numpy())
    if processor.chat_template:
        content = [{"type": "image", "image": image}, {"type": "text", "text": "a"}]
        made = processor.apply_chat_template(
            [{"role": "user", "content": content}], tokenize=True, return_dict=True, return_tensors="pt"
        )
    else:
        made = processor(text=[f"{processor.image_token}a"], images=[[image]], return_tensors="pt")
    return {name: value for name, value in made.items() if name != "attention_mask"}
