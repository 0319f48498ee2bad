"""`data=scenes`: rows of questions about rendered scenes, for a parent that reads images."""

from __future__ import annotations

import random
from typing import Any

import numpy as np
from jaxtyping import UInt8
from PIL import Image
from transformers import PreTrainedTokenizerBase, ProcessorMixin

from dlm.data import scenes
from dlm.data.encoding import refuse_mask
from dlm.data.module import PackedData
from dlm.data.packing import Document, Source
from dlm.data.pictures import processed, rendered, require_processor
from dlm.data.scenes.families import FAMILIES
from dlm.types import Images


def prompt_of(processor: ProcessorMixin, scene: scenes.Scene) -> tuple[list[int], Images]:
    """What a model is given of a scene: the token ids of the question behind its picture, and the picture's tensors."""
    content = [{"type": "image"}, {"type": "text", "text": scene.prompt}]
    text = rendered(processor, [{"role": "user", "content": content}])
    return processed(processor, text, [picture_of(scene.image)])


def picture_of(image: UInt8[np.ndarray, "height width 3"]) -> Image.Image:
    return Image.fromarray(image)


class SceneSource(Source):
    """Questions of one split about generated scenes. The answer and its EOS are maskable, picture and question are
    not. A family that is named twice is asked twice as often."""

    def __init__(self, split: str, tokenizer: PreTrainedTokenizerBase, processor: ProcessorMixin, families: list[str]):
        self.split, self.tokenizer, self.processor, self.families = split, tokenizer, processor, families

    def draw(self, rng: random.Random, room: int) -> Document | None:
        scene = scenes.sample(rng.choice(self.families), self.split, rng)
        answer = self.tokenizer(scene.answer, add_special_tokens=False)["input_ids"] + [self.tokenizer.eos_token_id]
        prompt, images = prompt_of(self.processor, scene)
        if len(prompt) + len(answer) > room:
            return None
        refuse_mask(self.tokenizer, [(f"the scene {scene.prompt + scene.answer!r}", prompt + answer)])
        return Document(prompt + answer, [False] * len(prompt) + [True] * len(answer), images=images)


class Scenes(PackedData):
    """Rendered scenes and questions about them, of all or some families; evaluations of its runs ask all. A family that
    is named twice is drawn twice as often."""

    asked = tuple(scenes.PREFIX + name for name in FAMILIES)

    def __init__(self, families: list[str] | None = None, **kwargs: Any):
        super().__init__(mixture={"scenes": 1.0}, **kwargs)
        if unknown := set(families or []) - set(FAMILIES):
            raise ValueError(f"data.families {sorted(unknown)} are unknown: choose from {[*FAMILIES]}")
        self.families = list(families or FAMILIES)

    def sources(self, split, tokenizer):
        processor = require_processor(self.processor, "data=scenes")
        return {"scenes": SceneSource(split, tokenizer, processor, self.families)}
