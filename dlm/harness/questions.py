"""What tasks ask: texts, and the pictures that some of them show.

A question with pictures is always asked in the chat template of the model's processor: as its user's turn, if the
harness has made no conversation of it. A picture stands where the text has `<image>`, before it where it has none.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from transformers import ProcessorMixin

from dlm.data.picture_files import Unreadable, file_of, opened, parts_of, placed
from dlm.data.pictures import bare, place_of, processed, rendered
from dlm.runs.digest import fingerprint
from dlm.types import Images


@dataclass(frozen=True)
class Question:
    """The text that a task asks about `pictures`, which are files. `task` is its name, for messages."""

    task: str
    text: str
    pictures: tuple[bytes, ...] = ()

    @classmethod
    def of(cls, request: Instance) -> Question:
        """The question of a request for a generation. Raises `ValueError` for what is no picture."""
        text, _, *beside = request.args
        shown: Mapping[str, Any] = beside[0] if beside else {}
        if other := shown.keys() - {"visual"}:
            raise ValueError(f"task {request.task_name} comes with {', '.join(sorted(other))}: choose one of pictures")
        visual = shown.get("visual", [])
        try:
            files = tuple(file_of(v, Path.cwd()) for v in (visual if isinstance(visual, list | tuple) else [visual]))
        except Unreadable as error:
            raise ValueError(f"task {request.task_name} shows {error.name!r}, {error.reason}") from error
        return cls(request.task_name, text, files)

    @property
    def content(self) -> dict[str, str]:
        """What the answer depends on."""
        return {"prompt": self.text} | ({"pictures": fingerprint(self.pictures)} if self.pictures else {})

    def encoded(self, processor: ProcessorMixin, is_rendered: bool) -> tuple[list[int], Images | None]:
        """The token ids of a question with pictures, and their tensors. `is_rendered`: its text is a conversation that
        the harness has made by `turns`. Raises `ValueError` if it has more or fewer places than pictures."""
        text = self.text
        if not is_rendered:
            try:
                turn = placed([{"role": "user", "content": parts_of(text)}], self.pictures)
            except Unreadable as error:
                raise ValueError(f"task {self.task} asks with {error.reason} ({error.name})") from error
            text = rendered(processor, bare(turn))
        elif (places := text.count(place_of(processor))) != len(self.pictures):
            raise ValueError(
                f"task {self.task} shows {len(self.pictures)} pictures, and its conversation has {places} places for "
                "them, written <image>: leave harness.chat_template and harness.num_fewshot out"
            )
        return processed(processor, text, [opened(file) for file in self.pictures])


def turns(history: Sequence[Mapping[str, str]]) -> list[dict[str, Any]]:
    """A conversation with the parts that the template of a processor takes."""
    return bare([{**message, "content": parts_of(message["content"])} for message in history])
