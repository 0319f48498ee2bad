"""A prepared corpus whose documents have pictures. Beside the files of a corpus it has

    pictures.bin      the files of all pictures, one after the other, and picture_ends.bin where each ends (int64)
    first.bin         the first picture of each document (int64), and number.bin how many it has (int32)
    prompts.bin       the rendered prompt of each document, with one image token for each picture, in UTF-8, and
    prompt_ends.bin   where each ends (int64)

A picture is decoded, and made the tensors that its model reads, when its document is drawn: as tensors it would take
ten times the room.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from jaxtyping import Integer
from PIL import Image
from transformers import ProcessorMixin

from dlm.data.corpus import Corpus, mapped
from dlm.data.packing import Document
from dlm.data.picture_files import opened
from dlm.data.pictures import processed

BYTES = np.uint8
FILES = {"pictures": BYTES, "picture_ends": np.int64, "first": np.int64, "number": np.int32}
FILES |= {"prompts": BYTES, "prompt_ends": np.int64}
# What places count: as they are appended, they go on from the items that the file of this name has.
COUNTED = {"picture_ends": "pictures", "first": "picture_ends", "prompt_ends": "prompts"}


@dataclass
class Pictured:
    """The pictures and prompts of the documents of a batch of rows: the `files` of pictures, and for each document its
    `first` one in these, their `number`, and its rendered prompt."""

    files: list[bytes] = field(default_factory=list)
    first: list[int] = field(default_factory=list)
    number: list[int] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)

    def add(self, first: int, number: int, prompt: str) -> None:
        """Add a document."""
        self.first.append(first)
        self.number.append(number)
        self.prompts.append(prompt)

    def written(self) -> dict[str, Integer[np.ndarray, " n"]]:
        """What is appended to each of `FILES`."""
        prompts = [prompt.encode() for prompt in self.prompts]
        return {
            "pictures": np.frombuffer(b"".join(self.files), BYTES),
            "picture_ends": np.cumsum([len(file) for file in self.files], dtype=np.int64),
            "first": np.array(self.first, np.int64),
            "number": np.array(self.number, np.int32),
            "prompts": np.frombuffer(b"".join(prompts), BYTES),
            "prompt_ends": np.cumsum([len(prompt) for prompt in prompts], dtype=np.int64),
        }


class PictureCorpus(Corpus):
    """A prepared corpus with pictures, of which `processor` makes the tensors of a model."""

    def __init__(self, folder: Path, processor: ProcessorMixin):
        super().__init__(folder)
        self.processor = processor
        self.files = {name: mapped(folder / f"{name}.bin", np.dtype(kind)) for name, kind in FILES.items()}

    def __reduce__(self):
        return PictureCorpus, (self.folder, self.processor)

    def document(self, number: int) -> Document:
        """A document by its number, with its images. Raises `ValueError` if the processor makes other tokens of it than
        when the corpus was prepared."""
        document = super().document(number)
        if not self.files["number"][number]:
            return document
        ids, images = processed(self.processor, self.prompt(number), self.pictures(number))
        if ids != document.ids[: len(ids)] or any(document.maskable[: len(ids)]):
            raise ValueError(
                f"the parent's processor makes other tokens of document {number} than when {str(self.folder)!r} was "
                "prepared: delete that folder"
            )
        return replace(document, images=images)

    def prompt(self, number: int) -> str:
        """The rendered prompt of a document."""
        return between(self.files["prompts"], self.files["prompt_ends"], number).decode()

    def pictures(self, number: int) -> list[Image.Image]:
        """The pictures of a document."""
        first = int(self.files["first"][number])
        places = range(first, first + int(self.files["number"][number]))
        files = (between(self.files["pictures"], self.files["picture_ends"], place) for place in places)
        return [opened(file) for file in files]


def between(values: Integer[np.ndarray, " n"], ends: Integer[np.ndarray, " m"], number: int) -> bytes:
    """The bytes of an item by its number."""
    return values[ends[number - 1] if number else 0 : ends[number]].tobytes()
