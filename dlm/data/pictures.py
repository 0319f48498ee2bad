"""What a vision-language parent is given of a conversation with pictures: token ids with its image tokens, and the
tensors of the images, as its own chat template and processor make them."""

from __future__ import annotations

from typing import Any

from transformers import PreTrainedTokenizerBase, ProcessorMixin

from dlm.data.packing import adds_bos
from dlm.types import Images

Message = dict[str, Any]
Reader = PreTrainedTokenizerBase | ProcessorMixin  # the processor of a parent that reads images, else its tokenizer


def tokenizer_of(reader: Reader) -> PreTrainedTokenizerBase:
    return reader.tokenizer if isinstance(reader, ProcessorMixin) else reader


def require_processor(processor: ProcessorMixin | None, what: str) -> ProcessorMixin:
    """The processor of a parent. Raises `ValueError` if it has none, or none with a chat template; `what` needs it."""
    if processor is None:
        raise ValueError(
            f"{what} has pictures, and the parent reads text only: choose a vision-language parent, such as "
            "model=tiny_vlm, or make one with python -m dlm.compose"
        )
    if not processor.chat_template:
        raise ValueError(
            f"the parent's processor has no chat template, by which {what} would be read: save one in its folder as "
            "chat_template.jinja"
        )
    return processor


def rendered(processor: ProcessorMixin, messages: list[Message]) -> str:
    """The prompt that asks for the next answer, with one image token for each picture."""
    return processor.apply_chat_template(messages, add_generation_prompt=True)


def processed(processor: ProcessorMixin, text: str, pictures: list[Any]) -> tuple[list[int], Images | None]:
    """The token ids of a rendered prompt and its pictures' tensors; None if it has no pictures. With and without them
    it begins with BOS, once, if the tokenizer adds it."""
    if not pictures:
        ids = processor.tokenizer(text, add_special_tokens=False)["input_ids"]
        bos = [processor.tokenizer.bos_token_id] if adds_bos(processor.tokenizer) else []
        return ids if ids[:1] == bos else bos + ids, None
    inputs = processor(text=[text], images=[pictures], return_tensors="pt")
    ids = inputs["input_ids"][0].tolist()
    bos = processor.tokenizer.bos_token_id
    if bos is not None and ids[:2] == [bos, bos]:  # of the template and of the tokenizer
        inputs = processor(text=[text], images=[pictures], return_tensors="pt", add_special_tokens=False)
        ids = inputs["input_ids"][0].tolist()
    return ids, Images.of(inputs)


def bare(messages: list[Message]) -> list[Message]:
    """Messages whose images are places only, as a template takes them."""
    return [
        message | {"content": [{"type": "image"} if p["type"] == "image" else p for p in message["content"]]}
        for message in messages
    ]


def place_of(processor: ProcessorMixin) -> str:
    """What stands for a picture in a rendered conversation."""
    return getattr(processor, "boi_token", None) or processor.image_token  # some have a token where an image begins
